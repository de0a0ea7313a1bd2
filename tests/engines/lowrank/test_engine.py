"""The low-rank engine agrees with scoring in place, or says which layer it cannot take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Evolution, Fitness, LowRank, OpenAIES, RandomMutation
from evostep.engines.lowrank import SharedProduct
from evostep.engines.lowrank.thin import convolution, embedding, linear


class Tokens(nn.Module):
    """Integers in, classes out: an embedding, an encoder, a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return out


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 3),
    )


def shortcuts() -> nn.Module:
    """A single tap with a stride, padding "same" of one side more, and taps that meet padding."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 1, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 2), padding="same"),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=4, padding=1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


class Product(nn.Module):
    """Multiplies by matrices as they stand, without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 16))
        self.second = nn.Parameter(torch.randn(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul((x @ self.first).relu(), self.second)


G = torch.Generator().manual_seed(0)
IMAGES, VECTORS = torch.randn(10, 4, 8, 8, generator=G), torch.randn(10, 6, generator=G)
TOKENS, TARGETS = torch.randint(11, (10, 5), generator=G), torch.arange(10) % 3
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, VECTORS),
    "product": (Product, VECTORS),
    "convnet": (convnet, IMAGES),
    "shortcuts": (shortcuts, IMAGES),
    "transformer": (Tokens, TOKENS),
}


def run(name: str, engine: Any, strategy: Any) -> tuple[list[list[float]], list[Tensor]]:
    torch.manual_seed(1)
    make, inputs = CASES[name]
    model = make()
    batches = [(inputs[:6], TARGETS[:6]), (inputs[6:], TARGETS[6:])]
    fitness = Fitness(model, batches, "neg-loss")
    records = Evolution(model, strategy, engine=engine).evolve(fitness, 2)
    return [record.scores for record in records], [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_agrees_with_scoring_in_place(name: str, rank: int, chunk: int | None) -> None:
    strategy = OpenAIES(0.1, lr=0.01, population=8, noise=LowRank(rank))
    expected, weights = run(name, "inplace", strategy)
    scores, others = run(name, SharedProduct(chunk), strategy)
    for one, other in zip(scores, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
        assert len(set(one)) == 8
    for a, b in zip(weights, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


class Odd(nn.Module):
    """Uses a weight in a way that no layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", x, self.odd.weight)


def test_what_cannot_be_intercepted_is_named_and_scored_in_place() -> None:
    torch.manual_seed(1)
    model = Odd()
    fitness = Fitness(model, [(VECTORS, TARGETS)], "neg-loss")
    strategy = RandomMutation(0.1, population=4, noise=LowRank(1))
    with pytest.warns(UserWarning, match="'lowrank' cannot score these members.*odd"):
        (record,) = Evolution(model, strategy, engine="lowrank").evolve(fitness)
    torch.manual_seed(1)
    twin = Odd()
    other = Evolution(twin, strategy, engine="inplace")
    expected = other.evolve(Fitness(twin, [(VECTORS, TARGETS)], "neg-loss"))[0]
    assert record.scores == expected.scores


def test_noise_of_full_rank_is_refused() -> None:
    model = mlp()
    fitness = Fitness(model, [(VECTORS, TARGETS)], "neg-loss")
    with pytest.warns(UserWarning, match=r"no factors.*LowRank\(rank\)"):
        Evolution(model, OpenAIES(0.1, population=4), engine="lowrank").evolve(fitness)


def test_a_chunk_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        SharedProduct(0)


# Layers against their dense twins


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_linear_layer_is_its_dense_twin(shared: bool, rank: int) -> None:
    x = torch.randn(7, 6) if shared else torch.randn(4, 7, 6)
    W, A, B, b = (
        torch.randn(5, 6),
        torch.randn(4, 5, rank),
        torch.randn(4, 6, rank),
        torch.randn(4, 5),
    )
    y = linear(x, W, A, B, b, shared=shared)
    for i in range(4):
        own = F.linear(x if shared else x[i], W + A[i] @ B[i].T, b[i])
        torch.testing.assert_close(y[i], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 1, 1, 1), (2, 1, 1, 1), (1, 0, 2, 1), (2, 2, 1, 2), (1, 1, 1, 12)],
)
def test_a_convolution_is_its_dense_twin(
    shared: bool, stride: int, padding: int, dilation: int, groups: int
) -> None:
    x = torch.randn(2, 12, 7, 7) if shared else torch.randn(3, 2, 12, 7, 7)
    W = torch.randn(24, 12 // groups, 3, 3)
    A, B, b = torch.randn(3, 24, 1), torch.randn(3, W[0].numel(), 1), torch.randn(3, 24)
    twice = [(v, v) for v in (stride, padding, dilation)]
    y = convolution(x, W, A, B, b, *twice, groups, shared=shared)
    for i in range(3):
        dense = W + (A[i] @ B[i].T).view_as(W)
        own = F.conv2d(x if shared else x[i], dense, b[i], stride, padding, dilation, groups)
        torch.testing.assert_close(y[i], own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_an_embedding_is_its_dense_twin(shared: bool) -> None:
    indices = torch.randint(9, (5,) if shared else (4, 5))
    W, A, B = torch.randn(9, 3), torch.randn(4, 9, 2), torch.randn(4, 3, 2)
    y = embedding(indices, W, A, B, shared=shared)
    for i in range(4):
        own = F.embedding(indices if shared else indices[i], W + A[i] @ B[i].T)
        torch.testing.assert_close(y[i], own, rtol=1e-4, atol=1e-4)
