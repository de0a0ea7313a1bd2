"""Targets that a metric with a name does not understand: one line; and those that it does.

All forms that are understood are in tests/scoring/test_metrics_table.py.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Evolution, Fitness, OpenAIES

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
B = X[:, :1] > 0


def network(out: int = 3) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, out)


@torch.no_grad()
def right(model: nn.Module) -> float:
    return float((model(X).argmax(1) == Y).double().mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_targets_with_a_number_for_each_class(smoothing: float) -> None:
    model = network()
    targets = F.one_hot(Y, 3) * (1 - smoothing) + smoothing / 3
    assert Fitness(model, [(X, targets)])() == pytest.approx(right(model))


@torch.no_grad()
def test_labels_of_minus_one_and_one() -> None:
    model = network(1)
    expected = float(((model(X) > 0) == B).double().mean())
    assert Fitness(model, [(X, torch.where(B, 1, -1))])() == pytest.approx(expected)
    # a batch in which one of them does not occur
    order = B[:, 0].long().argsort()
    batches = list(zip(X[order].split(9), torch.where(B, 1, -1)[order].split(9), strict=True))
    assert Fitness(model, batches)() == pytest.approx(expected)


class Gate(nn.Module):
    """Ends in a sigmoid that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = network(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x))


@torch.no_grad()
def test_probabilities_instead_of_logits() -> None:
    expected = float(((network(1)(X) > 0) == B).double().mean())
    ends = nn.Sequential(network(1), nn.Sigmoid())
    assert Fitness(ends, [(X, B.float())])() == pytest.approx(expected)
    with pytest.warns(UserWarning, match=r"all outputs lie in .* read as probabilities"):
        assert Fitness(Gate(), [(X, B.float())])() == pytest.approx(expected)
    told = Fitness(Gate(), [(X, B.float())], loss=F.binary_cross_entropy)
    assert told() == pytest.approx(expected)
    labels = nn.Sequential(network(3), nn.Sigmoid())
    targets = (X[:, :3] > 0).float()
    expected = float(((labels[0](X) > 0) == targets).double().mean())
    assert Fitness(labels, [(X, targets)])() == pytest.approx(expected)


@torch.no_grad()
def test_logits_are_not_taken_for_probabilities() -> None:
    model = network(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Fitness(model, [(X, B.float())])()
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        fitness = Fitness(model, [(X, B.float())])
        assert fitness() == pytest.approx(float((~B).double().mean())), "logit 0 is a 0"


def test_how_they_are_read_is_found_once() -> None:
    """Members of a network that ends in a sigmoid are compared with 0.5, whatever they give."""
    model = nn.Sequential(network(1), nn.Sigmoid())
    fitness = Fitness(model, [(X, B.float())])
    one = {}
    for engine in ("inplace", "vmap"):
        search = Evolution(model, OpenAIES(0.5, lr=1e-9, population=8), engine=engine)
        one[engine] = search.evolve(fitness)[0].scores
    assert len(set(one["inplace"])) > 1
    assert one["inplace"] == one["vmap"]


def test_the_whole_set_tells_though_a_generation_sees_a_part_of_it() -> None:
    """One batch of labels looks one-hot; the others do not."""
    targets = torch.zeros(60, 3)
    targets[:10, 0] = 1
    targets[10:] = (X[10:, :3] > 0).float()
    model = network()
    batches = list(zip(X.split(10), targets.split(10), strict=True))
    fitness = Fitness(model, batches, batches_per_generation=1)
    part = next(e for g in range(60) if (e := fitness.examples(0, g)).batches[0][1][0, 0] == 1)
    with torch.no_grad():
        expected = float(((model(part.batches[0][0]) > 0) == part.batches[0][1]).double().mean())
    assert fitness.score(part).value == pytest.approx(expected)


REFUSED: dict[str, tuple[int, Any, dict[str, Any], str]] = {
    "regression": (1, X[:, :1] * 2, {}, r"\(60, 1\).*float32, from -.*are no 0/1 labels.*mse_loss"),
    "regression of several": (3, X[:, :3], {}, r"\(60, 3\).*are no 0/1 labels.*mse_loss"),
    "regression, one column for all": (3, X[:, 0], {}, r"are no numbers of classes.*mse_loss"),
    "classes from 1": (3, Y + 1, {}, r"from 1 to 3, do not fit 3 classes, 0 to 2"),
    "classes from 2": (3, Y + 2, {}, r"int64, from 2 to 4, do not fit 3 classes, 0 to 2"),
    "a mark": (3, Y.masked_fill(Y == 0, 255), {}, r"ignore_index=255\) if 255 marks"),
    "a class below": (3, Y - 1, {}, r"from -1 to 1, do not fit 3 classes"),
    "1 and 2": (1, B.long() + 1, {}, r"from 1 to 2, are no 0/1 labels: one output each takes 0"),
    "three classes, one output": (1, Y, {}, "from 0 to 2, are no 0/1 labels: one output each"),
    "all ignored": (3, torch.full_like(Y, -100), {}, "every target is -100, which does not count"),
    "fewer columns": (3, torch.zeros(60, 2), {}, r"\(60, 3\).*\(60, 2\).*do not fit: give"),
    "no classes": (3, (X[:, :3] > 0).float(), {"targets": "classes"}, "are no classes"),
    "labels that are none": (3, Y, {"targets": "labels"}, "are no labels"),
    "two tensors": (
        3,
        {"a": Y, "b": Y},
        {},
        "one tensor, got a dict.*the keys a, b: pass forward=",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "balanced-accuracy"])
def test_refused_in_one_line(name: str, metric: str) -> None:
    out, targets, options, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as caught:
        Fitness(network(out), [(X, targets)], metric, **options)()
    assert "\n" not in str(caught.value)
    assert f"metric '{metric}'" in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (X[:, :1], r"have no column for each class, which cross-entropy takes.*mse_loss"),
        (B.float(), "have no column for each class.*binary_cross_entropy_with_logits"),
        (B[:, 0].float(), "have no column for each class"),
    ],
)
def test_a_cross_entropy_that_would_be_constant(targets: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fitness(network(1), [(X, targets)], "neg-loss")()


def test_under_a_forward_of_ones_own_later_batches_are_looked_at_too() -> None:
    batches = [(X[:30], Y[:30]), (X[30:], Y[30:] + 3)]
    fitness = Fitness(network(), batches, forward=lambda m, b: (m(b[0]), b[1]))
    with pytest.raises(ValueError, match="do not fit 3 classes"):
        fitness()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = network()

    def forward(self, x: Tensor) -> Any:
        return self.linear(x), x


def test_a_model_that_gives_a_tuple() -> None:
    with pytest.raises(ValueError, match=r"got a tuple of \(60, 3\), \(60, 4\).*outputs\[0\]"):
        Fitness(Two(), [(X, Y)])()
    own = Fitness(Two(), [(X, Y)], lambda o, t: (o[0].argmax(1) == t).double())
    assert own() == pytest.approx(right(network())), "metrics of one's own see what there is"


def test_the_targets_argument_is_checked() -> None:
    with pytest.raises(ValueError, match="'auto', 'classes' or 'labels', got 'multi'"):
        Fitness(network(), [(X, Y)], targets="multi")  # type: ignore[arg-type]
