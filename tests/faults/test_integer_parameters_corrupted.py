"""Numbers of other types: integers and 8-bit floats are codes, complex ones move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import SNES, Always, Evolution, Evolved, Fitness, OpenAIES, RandomMutation, Span
from evostep.noise import LowRank

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Quantised(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        codes = torch.randint(-100, 100, (8, 4)).to(dtype)
        self.q = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(torch.full((8, 1), 0.01))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(x, self.q.float() * self.scale)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("what", ["Evolution", "Evolved", "Evolved, named"])
def test_codes_stand_still_and_the_rest_moves(what: str, dtype: torch.dtype) -> None:
    model = Quantised(dtype)
    codes, scale = model.q.clone(), model.scale.clone()
    strategy = RandomMutation(0.05, population=4)
    search: Any
    if what == "Evolution":
        search = Evolution(model, strategy, accept=Always())
    else:
        given: Any = model.named_parameters() if "named" in what else model.parameters()
        search = Evolved(torch.optim.AdamW(given, lr=1e-3), strategy, accept=Always())
    search.evolve(Fitness(model, [(X, Y)], "neg-loss"), 2)
    assert torch.equal(model.q.view(torch.uint8), codes.view(torch.uint8))
    assert not torch.equal(model.scale, scale)
    other = Quantised(dtype)  # positions and names come out the same when it is resumed
    fresh = Evolved(torch.optim.AdamW(other.parameters(), lr=1e-3), strategy, accept=Always())
    fresh.evolution.load_state_dict(
        {**search.state_dict(), **search.state_dict().get("evolution", {})}
    )


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.irfft(torch.fft.rfft(x) @ self.w, n=4))


MAKERS: dict[str, Callable[[], Any]] = {
    "openai": lambda: OpenAIES(0.05, lr=0.02, population=4),
    "adam": lambda: OpenAIES(0.05, lr=0.02, population=4, optimizer="Adam"),
    "snes": lambda: SNES(0.05, population=4),
    "low rank": lambda: OpenAIES(0.05, lr=0.02, population=4, noise=LowRank(1)),
    "safe": lambda: RandomMutation(0.05, population=4, scale="safe"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_complex_weights_move_through_their_real_view(name: str) -> None:
    found = []
    for engine in ("inplace", "lowrank" if name == "low rank" else "vmap"):
        model = Spectral()
        before = model.w.detach().clone()
        optimizer = Evolved(
            torch.optim.SGD(model.parameters(), lr=0.1),
            MAKERS[name](),
            accept=Always(),
            engine=engine,
        )
        records = optimizer.evolve(Fitness(model, [(X, Y)], "neg-loss"), 2)
        difference = model.w.detach() - before
        assert bool(difference.real.any())
        assert bool(difference.imag.any())
        found.append([score for record in records for score in record.scores])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_mixtures_and_dictionaries_of_complex_weights() -> None:
    model = Spectral()
    search = Evolution(model, RandomMutation(0.5, population=4), space=Span())
    search.remember()
    with torch.no_grad():
        model.w += 0.5j
    start = model.w.detach().clone()
    records = search.evolve(Fitness(model, [(X, Y)], "neg-loss"), 3)
    assert any(record.accepted for record in records)
    assert not torch.equal(start, model.w)
    z = torch.tensor([3 + 4j])
    one = Evolution({"z": z}, RandomMutation(0.5, population=8))
    one.evolve(lambda: -float(z.abs().sum()), 10)
    assert float(z.abs()) < 4
