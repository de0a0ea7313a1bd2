"""Metrics that a fitness can maximise: a name, a torchmetrics metric, or any callable.

`METRICS` is the table: a new metric with a name is one function and one row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.errors import InputError, needs_package, unknown_name
from evostep.scoring import losses, scikit
from evostep.scoring.accumulators import (
    Accumulator,
    Mean,
    PerExample,
    Predicted,
    TorchMetric,
    Undecided,
    Whole,
    blank,
)
from evostep.scoring.forms import Form, Known, Reader, read_form
from evostep.scoring.losses import Loss


def predictions(outputs: Tensor, targets: Tensor) -> Tensor:
    """Turn outputs into predictions, int64: the number of a class, or 0 and 1.

    Args:
        outputs: (n, classes, ...) or (n, ..., classes) for classes; (n,) or (n, 1) for one binary
            label; the shape of `targets` for several labels.
        targets: (n, ...), or (n, classes, ...) one-hot or soft, see `evostep.Fitness`.

    Raises:
        InputError: what is not understood.
    """
    return read_form([(outputs, targets)], Known(), "predictions").predict(outputs, targets)[0]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of right predictions of each example, shape (n,), in [0, 1].

    Of an example without a target that counts it is NaN.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> accuracy(logits, torch.tensor([0, 0])).tolist()
        [1.0, 0.0]
    """
    form = read_form([(outputs, targets)], Known(), "accuracy")
    right, of = _right(form)(outputs, targets)
    return right if of is None else right / of


def _right(form: Form) -> PerExample:
    """Return the function that counts right predictions of each example, and predictions."""

    def count(outputs: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
        guess, true, counted = form.predict(outputs, targets)
        right = guess == true
        if counted is not None:
            n = len(right)
            right, of = (right & counted).reshape(n, -1), counted.reshape(n, -1)
            return right.sum(1).double(), of.sum(1).double()
        if right.ndim == 1:
            return right.double(), None
        right = right.flatten(1)
        return right.sum(1).double(), right.new_full(
            (len(right),), right.shape[1], dtype=torch.double
        )

    return count


def _torchmetrics() -> Any:
    try:
        from torchmetrics.functional import classification
    except ImportError as error:
        raise needs_package("this metric", "torchmetrics", "evostep[metrics]", error) from error
    return classification


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the mean recall over the classes that occur in `targets`, in [0, 1].

    For several binary labels: the mean over labels of each label's balanced accuracy.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> balanced_accuracy(logits, torch.tensor([0, 0, 0, 1]))
        0.5
    """
    return _of_predictions(_balanced_accuracy, outputs, targets)


def macro_f1(outputs: Tensor, targets: Tensor) -> float:
    """Return the unweighted mean over classes (or labels) of their F1, in [0, 1].

    Classes that occur neither in the targets nor among the predictions are left out.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> macro_f1(logits, torch.tensor([0, 1]))
        1.0
    """
    return _of_predictions(_macro_f1, outputs, targets)


OfPredictions = Callable[[Tensor, Tensor, int, bool], float]


def _of_predictions(function: OfPredictions, outputs: Tensor, targets: Tensor) -> float:
    accumulator = Predicted(function, read_form([(outputs, targets)], Known(), "the metric"))
    accumulator.update(outputs, targets)
    return float(accumulator.compute()[0])


def _balanced_accuracy(guess: Tensor, true: Tensor, classes: int, labels: bool) -> float:
    columns = zip(guess.T, true.T, strict=True) if labels else [(guess, true)]
    means = []
    for predicted, target in columns:
        predicted, target = predicted[target >= 0], target[target >= 0]
        recall = _torchmetrics().multiclass_recall(predicted, target, classes, average="none")
        occurs = torch.bincount(target, minlength=classes) > 0
        means.append(recall[occurs].mean())
    return float(torch.stack(means).nanmean())


def _macro_f1(guess: Tensor, true: Tensor, classes: int, labels: bool) -> float:
    classification = _torchmetrics()
    if labels:
        ignored = -1 if bool((true < 0).any()) else None
        score = classification.multilabel_f1_score(
            guess, true, true.shape[1], average="macro", ignore_index=ignored
        )
    else:
        score = classification.multiclass_f1_score(guess, true, classes, average="macro")
    return float(score)


def _minus_the_loss(form: Form, loss: Loss) -> Accumulator:
    """Make minus the loss over all examples in one batch, for torch's losses of each position."""
    plain = losses.unreduced(loss)
    if plain is None:
        return Whole(loss, -1.0)
    binary = losses.takes_probabilities(loss) is not None
    of_classes = losses.takes_classes(loss)

    def parts(outputs: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
        if of_classes and form.kind == "classes":
            outputs, targets = form.align(outputs, targets)
            if form.soft:
                targets = targets.to(outputs.dtype)
            else:
                targets = (targets > 0).long() if form.signed else targets.long()
        elif not of_classes and isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            if targets.shape != outputs.shape and targets.numel() == outputs.numel():
                targets = targets.reshape(outputs.shape)  # else they would be broadcast
            targets = targets.to(outputs.dtype) if binary else targets
        return losses.per_example(plain, loss, outputs, targets)

    return Mean(parts, total=losses.reduction_of(loss) == "sum")


@dataclass(frozen=True)
class Metric:
    """A metric that has a name.

    Attributes:
        summary: one line.
        fraction: whether it lies in [0, 1], so that it is told in percent.
        make: takes the form of outputs and targets, and the loss; returns an accumulator.
    """

    summary: str
    fraction: bool
    make: Callable[[Form, Loss], Accumulator]


METRICS: dict[str, Metric] = {
    "accuracy": Metric("share of right predictions", True, lambda form, _: Mean(_right(form))),
    "balanced-accuracy": Metric(
        "mean recall over classes", True, lambda form, _: Predicted(_balanced_accuracy, form)
    ),
    "macro-f1": Metric("mean F1 over classes", True, lambda form, _: Predicted(_macro_f1, form)),
    "neg-loss": Metric("minus the loss (cross-entropy unless told)", False, _minus_the_loss),
}

MetricLike = str | Callable[[Any, Any], Any]


def make_metric(
    metric: MetricLike | Any,
    *,
    loss: Callable[..., Tensor] = F.cross_entropy,
    higher_is_better: bool | None = None,
    reader: Reader | None = None,
) -> Callable[[], Accumulator]:
    """Return a factory of accumulators for a metric, so that higher is better.

    Args:
        metric: a name of `METRICS`, a torchmetrics metric, a function or scorer of scikit-learn's,
            or a callable on (outputs, targets).
        loss: what ``"neg-loss"`` is minus of.
        higher_is_better: needed where a torchmetrics metric does not say, and for a loss; for any
            other callable None means True.
        reader: finds how outputs and targets are read, and keeps it; None: each accumulator does.

    Raises:
        ValueError: an unknown name; a metric of unknown direction; a collection of metrics.
    """
    if isinstance(metric, str):
        return _named(metric, loss, higher_is_better, reader)
    if isinstance(metric, type):
        raise InputError(
            f"metric is the class {metric.__name__}: pass an instance, {metric.__name__}(...)"
        )
    if hasattr(metric, "update") and hasattr(metric, "compute") and hasattr(metric, "reset"):
        declared = getattr(metric, "higher_is_better", None)
        direction = declared if higher_is_better is None else higher_is_better
        if not isinstance(direction, bool):
            raise ValueError(
                f"{type(metric).__name__} does not say whether higher is better: "
                "pass higher_is_better=True or False"
            )
        return partial(TorchMetric, blank(metric), 1.0 if direction else -1.0)
    found = scikit.recognise(metric)
    if found is not None:
        up = found.higher_is_better if higher_is_better is None else higher_is_better
        function = partial(scikit.call, found, reader or Reader())
        return partial(Whole, function, 1.0 if up else -1.0, False)
    if callable(metric):
        if higher_is_better is None and looks_like_a_loss(metric):
            name = _name(metric)
            raise InputError(
                f"metric {name} looks like a loss, and a fitness climbs: pass "
                f"higher_is_better=False, or metric='neg-loss' with loss={name}"
            )
        return partial(Whole, metric, -1.0 if higher_is_better is False else 1.0)
    raise ValueError(
        f"metric must be a name ({', '.join(METRICS)}), a torchmetrics metric or a callable on "
        f"(outputs, targets), got {metric!r}"
    )


def _named(
    metric: str, loss: Loss, higher_is_better: bool | None, reader: Reader | None
) -> Callable[[], Accumulator]:
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    if higher_is_better is False:
        raise ValueError(
            f"higher is better for {metric!r} by definition: leave higher_is_better out"
        )
    build = METRICS[metric].make
    of_loss = build is _minus_the_loss
    if of_loss and not losses.takes_classes(loss):
        return lambda: build(Form("unknown"), loss)
    if not of_loss and metric != "accuracy":
        _torchmetrics()  # say now, not in the middle of a run, that it is missing
    who = f"metric {metric!r}"

    def make() -> Accumulator:
        if reader is not None and reader.form is not None:
            return build(reader.form, loss)
        first = reader or Reader(known_of(loss))
        return Undecided(first, lambda form: build(form, loss), who, of_loss=of_loss)

    return make


def known_of(loss: Loss, **known: Any) -> Known:
    """Return what a loss tells of outputs and targets, and what else is known."""
    ignored = losses.options_of(loss).get("ignore_index", Known.ignore_index)
    return Known(ignore_index=ignored, probabilities=losses.takes_probabilities(loss), **known)


_LOSS = re.compile(
    r"loss|error|entropy|criterion|kl ?div|perplexity|deviance|\b(mse|mae|rmse|nll|bce)\b",
    re.IGNORECASE,
)


def looks_like_a_loss(metric: Any) -> bool:
    """Return whether a callable is, by its type or name, something that is to be small.

    Example:
        >>> looks_like_a_loss(F.cross_entropy), looks_like_a_loss(torch.dist)
        (True, False)
    """
    if isinstance(metric, nn.modules.loss._Loss):
        return True
    name = re.sub(r"_+", " ", _name(metric)).strip()
    return bool(_LOSS.search(name)) and not re.match(r"(neg|minus)", name, re.IGNORECASE)


def _name(metric: Any) -> str:
    if isinstance(metric, partial):
        return _name(metric.func)
    return str(getattr(metric, "__name__", type(metric).__name__))
