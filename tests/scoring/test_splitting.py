"""Forms of batches: what goes in as which arguments, what are targets, what are weights."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from evostep import Evolution, Fitness, OpenAIES, RandomMutation

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
W = torch.rand(12, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(4, 3)

    def out(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


class One(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class Two(Net):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(a + 2 * b)


class Optional(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.out(x if mask is None else x * mask)


class OfOneThing(Net):
    """Takes a tuple, list, mapping, named tuple or dataclass as its one argument."""

    def forward(self, both: Any) -> Tensor:
        if isinstance(both, collections.UserDict | dict):
            a, b = both["a"], both["b"]
        elif isinstance(both, tuple | list):
            a, b = both
        else:
            a, b = both.a, both.b
        return self.out(a + 2 * b)


class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.out(self.rnn(x)[1][0])


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Sample(NamedTuple):
    label: Tensor
    image: Tensor


class Several(NamedTuple):
    b: Tensor
    targets: Tensor
    a: Tensor


@dataclass
class Record:
    image: Tensor
    target: Tensor


@dataclass(frozen=True)
class Both:
    a: Tensor
    b: Tensor


def accuracy(outputs: Tensor) -> float:
    return float((outputs.argmax(1) == Y).double().mean())


LISTED = DataLoader([((x, x / 2), y) for x, y in zip(X, Y, strict=True)], batch_size=5)  # type: ignore[arg-type]
NAMED = DataLoader([Sample(y, x) for x, y in zip(X, Y, strict=True)], batch_size=5)  # type: ignore[arg-type]
PLAIN: dict[str, tuple[type[Net], Any]] = {
    "named tuple": (One, [Sample(Y, X)]),
    "a loader of named tuples": (One, NAMED),
    "dataclass": (One, [Record(X, Y)]),
    "a dictionary of another name": (One, [{"image": X, "label": Y}]),
    "an optional input left out": (Optional, [(X, Y)]),
    "an optional input": (Optional, [(X, torch.ones(12, 4), Y)]),
    "UserDict": (One, [collections.UserDict(x=X, labels=Y)]),
}
TWICE: dict[str, tuple[type[Net], Any]] = {
    "nested": (Two, [((X, X / 2), Y)]),
    "a loader of nested tuples": (Two, LISTED),
    "what such a loader gave": (Two, list(LISTED)),
    "named tuple by name": (Two, [Several(X / 2, Y, X)]),
    "a dictionary in a tuple": (Two, [({"b": X / 2, "a": X}, Y)]),
    "one tuple": (OfOneThing, [((X, X / 2), Y)]),
    "one list": (OfOneThing, [([X, X / 2], Y)]),
    "one named tuple": (OfOneThing, [(Pair(X, X / 2), Y)]),
    "one dictionary": (OfOneThing, [({"a": X, "b": X / 2}, Y)]),
    "one UserDict": (OfOneThing, [(collections.UserDict(a=X, b=X / 2), Y)]),
    "one dataclass": (OfOneThing, [(Both(X, X / 2), Y)]),
}


@pytest.mark.parametrize("form", [*PLAIN, *TWICE])
@pytest.mark.parametrize("engine", ["inplace", "vmap"])
def test_splitting(form: str, engine: str) -> None:
    kind, batches = {**PLAIN, **TWICE}[form]
    model = kind()
    with torch.no_grad():
        expected = accuracy(model.out(X if form in PLAIN else 2 * X))
    fitness = Fitness(model, batches)
    assert fitness() == pytest.approx(expected)
    assert len(fitness.examples()) == 12
    records = Evolution(model, OpenAIES(0.1, population=2), engine=engine).evolve(fitness)
    assert records[0].parent == pytest.approx(expected)


def test_packed_sequences_are_one_input() -> None:
    parts = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 3, 2)]
    model, packed = Recurrent(), pack_sequence(parts)
    with torch.no_grad():
        expected = -float(F.cross_entropy(model(packed), Y[:3]))
    fitness = Fitness(model, [(packed, Y[:3])], "neg-loss")
    assert fitness() == pytest.approx(expected, rel=1e-6)
    assert len(fitness.examples()) == 3
    assert Evolution(model, RandomMutation(0.1, 2)).evolve(fitness)[0].failed == 0


def weighted_loss(model: Net) -> float:
    with torch.no_grad():
        losses = F.cross_entropy(model.out(X), Y, reduction="none").double()
    return -float((losses * W).sum() / W.sum())


WEIGHTED: dict[str, Any] = {
    "three": (One, [(X[:8], Y[:8], W[:8]), (X[8:], Y[8:], W[8:])]),
    "by name": (Optional, [{"x": X, "targets": Y, "sample_weight": W}]),
    "named tuple": (One, [collections.namedtuple("N", "x y weights")(X, Y, W)]),
}


@pytest.mark.parametrize("form", WEIGHTED)
@pytest.mark.parametrize("engine", ["inplace", "vmap", "racing"])
@pytest.mark.filterwarnings("ignore:engine .* cannot score")
def test_weights_weigh(form: str, engine: str) -> None:
    kind, batches = WEIGHTED[form]
    model = kind()
    fitness = Fitness(model, batches, "neg-loss")
    scores = fitness.score(fitness.examples())
    assert scores.value == pytest.approx(weighted_loss(model), rel=1e-6)
    assert scores.per_example is not None
    assert float(scores.per_example.mean()) == pytest.approx(scores.value)
    search = Evolution(model, RandomMutation(0.5, 4), engine=engine)
    record = search.evolve(fitness)[0]
    if record.accepted:
        assert record.candidate == pytest.approx(weighted_loss(model), rel=1e-5)
    own = Fitness(model, batches, lambda o, t: (o.argmax(1) == t).double())
    assert own() == pytest.approx(Fitness(model, batches)())


@pytest.mark.parametrize(
    "metric",
    [lambda o, t: 0.5, torchmetrics.MeanSquaredError()],
    ids=["own", "torchmetrics"],
)
def test_metrics_that_cannot_weigh_say_so(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot weigh examples.*forward=") as error:
        Fitness(One(), [(X, Y, W)], metric)()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "batch", "words"),
    [
        (
            Optional,
            (X, Y, W),
            r"ends in a float32 tensor of shape \(12,\) may be.*takes b",
        ),
        (One, (X, Y, torch.arange(12)), r"does not fit.*int64 tensor of shape \(12,\), is not we"),
        (One, (X, Y, -W), "not weights"),
        (One, {"x": X, "index": Y, "labels": Y}, "takes no 'index', which the batch has: leave it"),
        (Two, {"x": X, "z": X, "labels": Y}, "takes no 'x', 'z'.*leave them out, or pass forward"),
    ],
    ids=["ambiguous", "an index", "negative", "a key too many", "other keys"],
)
def test_what_may_be_read_in_two_ways_is_refused(model: type[Net], batch: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        Fitness(model(), [batch])()
    assert "\n" not in str(error.value)
