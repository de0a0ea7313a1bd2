"""Metrics: against scikit-learn and torch, their directions, and what is refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.scoring.metrics import METRICS, MetricLike, make_metric, predictions
from evostep.scoring.nests import concatenate


def measured(
    metric: MetricLike | Any, batches: list[tuple[Any, Any]], **options: Any
) -> tuple[float, Tensor | None]:
    accumulator = make_metric(metric, **options)()
    for outputs, targets in batches:
        accumulator.update(outputs, targets)
    return accumulator.compute()


def in_batches(outputs: Tensor, targets: Tensor, size: int = 7) -> list[tuple[Tensor, Tensor]]:
    return list(zip(outputs.split(size), targets.split(size), strict=True))


def classes(n: int = 120, k: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a mediocre classifier, the classes of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, generator=generator) ** 2 * k).long()
    outputs = torch.randn(n, k, generator=generator) + F.one_hot(targets, k)
    return outputs, targets


def several_labels(n: int = 90, labels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = (torch.rand(n, labels, generator=generator) < 0.3).float()
    return torch.randn(n, labels, generator=generator) + targets, targets


# Against scikit-learn

SKLEARN: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": sk.accuracy_score,
    "balanced-accuracy": sk.balanced_accuracy_score,
    "macro-f1": functools.partial(sk.f1_score, average="macro"),
}


@pytest.mark.parametrize("name", SKLEARN)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_classes_agree_with_scikit_learn(name: str, size: int) -> None:
    outputs, targets = classes()
    value, _ = measured(name, in_batches(outputs, targets, size))
    assert value == pytest.approx(SKLEARN[name](targets, outputs.argmax(1)), abs=1e-6)


@pytest.mark.parametrize("name", SKLEARN)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), k=st.integers(2, 6))
def test_classes_that_do_not_occur_are_left_out_as_in_scikit_learn(
    name: str, seed: int, n: int, k: int
) -> None:
    outputs, targets = classes(n, k, seed)
    guess = outputs.argmax(1)
    if name == "balanced-accuracy":  # scikit-learn warns of guesses that are no target
        recalls = [float((guess[targets == c] == c).double().mean()) for c in set(targets.tolist())]
        expected = float(np.mean(recalls))
    else:
        expected = SKLEARN[name](targets, guess)
    assert measured(name, [(outputs, targets)])[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SKLEARN)
@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_one_binary_label_agrees_with_scikit_learn(name: str, shape: tuple[int, ...]) -> None:
    outputs, targets = torch.randn(60), (torch.rand(60) < 0.3).long()
    expected = SKLEARN[name](targets, outputs > 0)
    for target in (targets, targets.view(shape), targets.view(shape).float()):
        value, _ = measured(name, in_batches(outputs.view(shape), target))
        assert value == pytest.approx(expected, abs=1e-6)


def test_several_labels_agree_with_scikit_learn() -> None:
    outputs, targets = several_labels()
    batches, guess = in_batches(outputs, targets), (outputs > 0).float()
    columns = range(targets.shape[1])
    assert measured("accuracy", batches)[0] == pytest.approx(
        1 - sk.hamming_loss(targets.int(), guess.int())
    )
    assert measured("macro-f1", batches)[0] == pytest.approx(
        sk.f1_score(targets, guess, average="macro"), abs=1e-6
    )
    assert measured("balanced-accuracy", batches)[0] == pytest.approx(
        np.mean([sk.balanced_accuracy_score(targets[:, c], guess[:, c]) for c in columns]), abs=1e-6
    )


def test_pixels_count_within_their_example() -> None:
    outputs, targets = torch.randn(6, 3, 4, 4), torch.randint(3, (6, 4, 4))
    value, per_example = measured("accuracy", in_batches(outputs, targets, 2))
    right = outputs.argmax(1) == targets
    assert value == pytest.approx(float(right.double().mean()))
    assert per_example is not None
    torch.testing.assert_close(per_example, right.double().mean((1, 2)))
    flat = targets.flatten(), outputs.argmax(1).flatten()
    assert measured("macro-f1", [(outputs, targets)])[0] == pytest.approx(
        sk.f1_score(*flat, average="macro"), abs=1e-6
    )


# Minus the loss


LOSSES: dict[str, Callable[..., Tensor]] = {
    "a function": F.cross_entropy,
    "a module": nn.CrossEntropyLoss(label_smoothing=0.1),
    "a partial": functools.partial(F.cross_entropy, label_smoothing=0.1),
    "a module that sums": nn.CrossEntropyLoss(reduction="sum"),
    "a lambda": lambda outputs, targets: F.cross_entropy(outputs, targets),
}


@pytest.mark.parametrize("name", LOSSES)
def test_neg_loss_is_minus_the_loss_over_all_examples(name: str) -> None:
    outputs, targets = classes()
    value, _ = measured("neg-loss", in_batches(outputs, targets), loss=LOSSES[name])
    smoothing = 0.1 if name in ("a module", "a partial") else 0.0
    reduction = "sum" if name == "a module that sums" else "mean"
    expected = -float(
        F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction=reduction)
    )
    assert value == pytest.approx(expected, rel=1e-6)


def test_a_loss_keeps_its_own_reduction() -> None:
    loss = nn.CrossEntropyLoss(reduction="sum")
    measured("neg-loss", in_batches(*classes()), loss=loss)
    assert loss.reduction == "sum"


def test_neg_loss_of_a_regression() -> None:
    outputs, targets = torch.randn(40, 3), torch.randn(40, 3)
    value, per_example = measured("neg-loss", in_batches(outputs, targets), loss=F.mse_loss)
    assert value == pytest.approx(-float(F.mse_loss(outputs, targets)), rel=1e-6)
    assert per_example is not None
    torch.testing.assert_close(per_example, -(outputs - targets).square().mean(1).double())


def test_neg_loss_of_a_loss_written_in_cpp() -> None:
    outputs, targets = torch.randn(40, 3), torch.randn(40, 3)
    value, per_example = measured("neg-loss", in_batches(outputs, targets), loss=torch.dist)
    assert value == pytest.approx(-float(torch.dist(outputs, targets)), rel=1e-6)
    assert per_example is None


def test_neg_loss_of_several_labels() -> None:
    outputs, targets = several_labels()
    loss = F.binary_cross_entropy_with_logits
    value, per_example = measured("neg-loss", in_batches(outputs, targets), loss=loss)
    assert value == pytest.approx(-float(loss(outputs, targets)), rel=1e-6)
    assert per_example is not None
    assert per_example.shape == (len(targets),)


# Values for each example


@pytest.mark.parametrize("name", [n for n, m in METRICS.items() if m.decomposes != "texts"])
def test_the_mean_over_examples_is_the_value_where_there_are_such(name: str) -> None:
    outputs, targets = classes()
    value, per_example = measured(name, in_batches(outputs, targets))
    assert (per_example is not None) == (name in ("accuracy", "neg-loss"))
    if per_example is not None:
        assert per_example.shape == (len(targets),)
        assert per_example.dtype == torch.float64
        assert float(per_example.mean()) == value


def test_values_for_each_example_are_in_the_order_of_the_examples() -> None:
    outputs, targets = classes()
    _, per_example = measured("accuracy", in_batches(outputs, targets))
    assert per_example is not None
    assert torch.equal(per_example, (outputs.argmax(1) == targets).double())


# Callables


def test_a_callable_sees_all_examples_at_once() -> None:
    outputs, targets = classes()
    seen: list[tuple[Any, Any]] = []

    def metric(o: Tensor, t: Tensor) -> float:
        seen.append((o, t))
        return 0.25

    assert measured(metric, in_batches(outputs, targets)) == (0.25, None)
    assert len(seen) == 1
    assert torch.equal(seen[0][0], outputs)
    assert torch.equal(seen[0][1], targets)


@pytest.mark.parametrize("form", [float, torch.tensor, np.float32, lambda x: torch.tensor([x])])
def test_a_callable_may_give_its_number_in_any_form(form: Callable[[float], Any]) -> None:
    assert measured(lambda *_: form(0.5), in_batches(*classes())) == (0.5, None)


@pytest.mark.parametrize(("direction", "sign"), [(None, 1), (True, 1), (False, -1)])
def test_a_callable_is_higher_better_unless_told(direction: bool | None, sign: int) -> None:
    value, _ = measured(lambda *_: 2.0, in_batches(*classes()), higher_is_better=direction)
    assert value == 2.0 * sign


def test_a_callable_that_gives_one_number_for_each_example() -> None:
    outputs, targets = classes()
    right = lambda o, t: (o.argmax(1) == t).float()  # noqa: E731
    value, per_example = measured(right, in_batches(outputs, targets), higher_is_better=False)
    assert value == pytest.approx(-float((outputs.argmax(1) == targets).double().mean()))
    assert per_example is not None
    assert torch.equal(per_example, -right(outputs, targets).double())


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (torch.zeros(3, 2), r"one number.*\(3, 2\)"),
        (torch.zeros(5), r"one number.*\(5,\)"),  # one for each class, say
        ({"f1": 0.5}, "one number.*dict"),
        ([0.1, 0.2], "one number.*list"),
    ],
)
def test_a_callable_that_gives_neither_is_refused(result: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measured(lambda *_: result, in_batches(*classes(n=120)))


# torchmetrics


def test_a_torchmetrics_metric_gives_what_it_gives_by_itself() -> None:
    outputs, targets = classes()
    metric = torchmetrics.CohenKappa(task="multiclass", num_classes=5)
    value, per_example = measured(metric, in_batches(outputs, targets))
    assert value == pytest.approx(sk.cohen_kappa_score(targets, outputs.argmax(1)), abs=1e-6)
    assert per_example is None
    assert metric.update_count == 0, "the user's own metric must keep its state"


def test_two_scorings_do_not_add_up() -> None:
    make = make_metric(torchmetrics.SumMetric(), higher_is_better=True)
    values = []
    for _ in range(2):
        accumulator = make()
        accumulator.metric.update(torch.tensor(2.0))  # type: ignore[attr-defined]
        values.append(accumulator.compute()[0])
    assert values == [2.0, 2.0]


def test_a_metric_that_was_used_before_starts_anew() -> None:
    outputs, targets = classes()
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=5)
    metric.update(outputs[:50], (targets[:50] + 1) % 5)
    value, _ = measured(metric, in_batches(outputs, targets))
    assert value == pytest.approx(sk.accuracy_score(targets, outputs.argmax(1)))
    assert metric.update_count == 1


def test_a_metric_to_be_small_is_negated() -> None:
    outputs, targets = torch.randn(40), torch.randn(40)
    value, _ = measured(torchmetrics.MeanSquaredError(), in_batches(outputs, targets))
    assert value == pytest.approx(-float(F.mse_loss(outputs, targets)), rel=1e-5)


@pytest.mark.parametrize(("told", "sign"), [(True, 1), (False, -1)])
def test_a_metric_that_does_not_say_can_be_told(told: bool, sign: int) -> None:
    outputs, targets = torch.rand(40), torch.randint(2, (40,))
    metric = torchmetrics.ConfusionMatrix(task="binary")
    assert metric.higher_is_better is None
    with pytest.raises(ValueError, match="one number"):  # a direction alone does not make a number
        measured(metric, [(outputs, targets)], higher_is_better=told)
    value, _ = measured(
        torchmetrics.MeanMetric(), [(torch.tensor(3.0), torch.tensor(1.0))], higher_is_better=told
    )
    assert value == 3.0 * sign


# What is refused


class Callableless:
    pass


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("acuracy", {}, "unknown metric 'acuracy': did you mean accuracy"),
    ("f1", {}, "unknown metric 'f1'.*macro-f1"),
    ("accuracy", {"higher_is_better": False}, "higher is better for 'accuracy'.*leave"),
    (torchmetrics.MeanMetric(), {}, "MeanMetric does not say.*higher_is_better=True or False"),
    (
        torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()]),
        {},
        "MetricCollection does not say",
    ),
    (Callableless(), {}, "metric must be a name.*Callableless"),
    (3, {}, "metric must be a name.*got 3"),
]


@pytest.mark.parametrize(("metric", "options", "words"), REFUSED)
def test_refused(metric: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make_metric(metric, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("outputs", "targets"), [((4, 3), (4, 2)), ((4, 3, 2), (4,))])
def test_shapes_that_do_not_fit_are_refused(
    outputs: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"targets.*do not fit: give \(n, classes"):
        predictions(torch.zeros(outputs), torch.zeros(targets))


# Joining


def test_concatenate_joins_nested_batches() -> None:
    a, b = torch.arange(2), torch.arange(3)
    assert concatenate([a, b]).tolist() == [0, 1, 0, 1, 2]
    joined = concatenate([{"x": a, "y": (a, [a])}, {"x": b, "y": (b, [b])}])
    assert joined["x"].tolist() == [0, 1, 0, 1, 2]
    assert isinstance(joined["y"], tuple)
    assert joined["y"][1][0].tolist() == [0, 1, 0, 1, 2]
    assert concatenate([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1.0, 2.0]
    assert concatenate(["text", "more"]) == ["text", "more"]


def test_a_nan_output_does_not_pass_for_a_score() -> None:
    value, _ = measured("neg-loss", [(torch.full((4, 2), math.nan), torch.zeros(4).long())])
    assert math.isnan(value)
