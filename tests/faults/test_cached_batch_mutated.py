"""Whoever writes to a batch, or takes from it, changes no later score."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Evolution, Fitness, Only, RandomMutation

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
WRITES = "writes into its batch in place"


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class InPlace(nn.Module):
    """Normalises its input where it stands; from the n-th time on."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.net, self.after = network(), after
        self.calls = iter(range(1, 1_000_000))  # a number would be put back after a scoring

    def forward(self, x: Tensor) -> Tensor:
        if next(self.calls) > self.after:
            x.sub_(0.5).div_(2.0)
        else:
            x = (x - 0.5) / 2.0
        out: Tensor = self.net(x)
        return out


def value_of(net: nn.Module) -> float:
    with torch.no_grad():
        return -float(F.cross_entropy(net((X - 0.5) / 2.0), Y))


def test_a_forward_may_take_from_its_batch() -> None:
    def forward(model: nn.Module, batch: Any) -> Any:
        batch["kept"].append(1)
        return model(batch["x"]), batch.pop("labels")

    batch = {"x": X, "labels": Y, "kept": []}
    fitness = Fitness(network(), [batch], "accuracy", forward=forward)
    assert fitness() == fitness()
    assert set(batch) == {"x", "labels", "kept"}
    assert batch["kept"] == []


@pytest.mark.parametrize("after", [0, 2])
def test_a_model_may_write_to_its_input(after: int) -> None:
    model, x = InPlace(after), X.clone()
    fitness = Fitness(model, [(x[:40], Y[:40]), (x[40:], Y[40:])], "neg-loss")
    with pytest.warns(UserWarning, match=f"the forward of InPlace {WRITES}") as caught:
        values = [fitness() for _ in range(4)]
    assert caught[0].filename == __file__, "the user's line"
    assert values == pytest.approx([value_of(model.net)] * 4, rel=1e-6)
    assert torch.equal(x, X), "the user's own stays"


@pytest.mark.parametrize("engine", ["inplace", "vmap", "prefix", "racing"])
@pytest.mark.filterwarnings("ignore:engine .* cannot score")
def test_parent_and_members_see_the_same(engine: str) -> None:
    model = InPlace()
    space = Only("net.2.*") if engine == "prefix" else None
    search = Evolution(model, RandomMutation(0.02, 8), engine=engine, space=space)
    with pytest.warns(UserWarning, match=WRITES):
        records = search.evolve(Fitness(model, [(X, Y)], "neg-loss"), 4)
    assert records[0].parent == pytest.approx(value_of(InPlace().net), rel=1e-6)
    for one, following in itertools.pairwise(records):
        best = one.candidate if one.accepted else one.parent
        assert following.parent == pytest.approx(best, rel=1e-5)
    assert value_of(model.net) >= records[0].parent


def test_a_metric_that_writes_is_named() -> None:
    class Metric:
        higher_is_better = True

        def to(self, device: torch.device) -> None:
            """Lie nowhere."""

        def reset(self) -> None:
            self.value = 0.0

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            targets.add_(1)
            self.value = float((outputs.argmax(1) + 1 == targets).double().mean())

        def compute(self) -> float:
            return self.value

    fitness = Fitness(network(), [(X, Y)], Metric())
    with pytest.warns(UserWarning, match=f"the metric {WRITES}"):
        values = [fitness(), fitness()]
    assert values == [Fitness(network(), [(X, Y)])()] * 2


def test_a_forward_that_writes_is_named() -> None:
    def forward(model: nn.Module, batch: Any) -> Any:
        return model(batch[0].mul_(2)), batch[1]

    fitness = Fitness(network(), [[X, Y]], "neg-loss", forward=forward)
    with pytest.warns(UserWarning, match=f"forward= {WRITES}"):
        assert fitness() == fitness()


@pytest.mark.parametrize("kind", ["tensor", "numpy"])
def test_loaders_that_reuse_their_memory_are_read_as_copies(kind: str) -> None:
    class Reusing:
        def __iter__(self) -> Iterator[Any]:
            x = np.zeros((20, 4), dtype=np.float32)
            place = torch.from_numpy(x)
            for part, y in zip(X.split(20), Y.split(20), strict=True):
                x[:] = part.numpy()
                yield (x if kind == "numpy" else place), y

    assert Fitness(network(), Reusing())() == pytest.approx(Fitness(network(), [(X, Y)])())


def test_what_users_write_later_changes_nothing() -> None:
    array = X.numpy().copy()
    x = torch.from_numpy(array)
    fitness = Fitness(network(), [(x, Y)], "neg-loss")
    before = fitness()
    array[:] = 0
    assert fitness() == before


def test_nobody_writes_nobody_is_warned_and_nothing_is_copied_again() -> None:
    fitness = Fitness(network(), [(X, Y)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitness()
        (one,), (other,) = list(fitness.examples()), list(fitness.examples())
    assert one[0] is other[0]
    shared = torch.zeros(3)
    many = Fitness(nn.Identity(), [(X, shared), (X, shared)], lambda *_: 0.0).examples().batches
    assert many[0][1] is many[1][1], "what is one object in many batches stays one"


# what torch's counters do not see: name -> writes half of x into x
PAST_THE_COUNTERS: dict[str, Any] = {
    "data": lambda x: x.data.mul_(0.5),
    "detach and numpy": lambda x: np.multiply(x.detach().numpy(), 0.5, out=x.detach().numpy()),
    "numpy": lambda x: x.numpy().__imul__(0.5),
    "set by index": lambda x: x.data.__setitem__(slice(None), x.data * 0.5),
    "a view": lambda x: x.data.view(-1).mul_(0.5),
}


class Past(nn.Module):
    def __init__(self, write: Any) -> None:
        super().__init__()
        self.net, self.write = network(), [write]

    def forward(self, x: Tensor) -> Tensor:
        self.write[0](x)
        out: Tensor = self.net(x)
        return out


@pytest.mark.parametrize("keep", ["device", "host", "stream"])
@pytest.mark.parametrize("kind", PAST_THE_COUNTERS)
def test_a_model_may_write_past_the_counters(kind: str, keep: Any) -> None:
    model = Past(PAST_THE_COUNTERS[kind])
    x = X.clone()
    x[0, 0] = torch.nan  # is its own equal
    weights = (~x.isnan().any(1)).float()
    batches = [(x[:40], Y[:40], weights[:40]), (x[40:], Y[40:], weights[40:])]
    fitness = Fitness(model, batches, "neg-loss", keep=keep)
    if keep == "stream":
        values = [fitness() for _ in range(3)]
    else:
        with pytest.warns(UserWarning, match=f"the forward of Past {WRITES}") as caught:
            values = [fitness() for _ in range(3)]
        assert len(caught) == 1
    with torch.no_grad():
        expected = -float(F.cross_entropy(model.net(X[1:] * 0.5), Y[1:]))
    assert values == pytest.approx([expected] * 3, rel=1e-6)
    assert torch.equal(x[1:], X[1:]), "the user's own stays"


def test_a_metric_that_writes_past_the_counters_is_named() -> None:
    def metric(outputs: Tensor, targets: Tensor) -> float:
        targets.data.add_(1)  # of one batch: a join would be a copy
        return float(targets.double().mean())

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0

    fitness = Fitness(Seen(), [(X, Y)], metric)
    first = fitness()
    assert fitness() == first, "a function of all examples sees a copy"
