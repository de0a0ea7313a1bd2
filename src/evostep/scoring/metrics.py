"""Metrics that a fitness can maximise: a name, a torchmetrics metric, or any callable.

`METRICS` is the table of names. A metric of decisions or of outputs is a row of `CONFUSION_METRICS`
or `OUTPUT_METRICS`, and has its name here by that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.errors import InputError, unknown_name
from evostep.scoring import losses, scikit
from evostep.scoring.accumulators import (
    Accumulator,
    Counted,
    Mean,
    OfOutputs,
    PerExample,
    TorchMetric,
    Undecided,
    Whole,
    blank,
)
from evostep.scoring.confusion import CONFUSION_METRICS, ConfusionMetric, cost, f_beta
from evostep.scoring.forms import Form, Known, Reader, read_form
from evostep.scoring.losses import Loss
from evostep.scoring.outputs import (
    OUTPUT_METRICS,
    OutputMetric,
    precision_at_k,
    recall_at_precision,
)
from evostep.scoring.texts import TEXT_METRICS, TextMetric


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
    right, of = _right(form)(outputs, targets, None)
    return right if of is None else right / of


def _right(form: Form) -> PerExample:
    """Return the function that counts right predictions of each example, and predictions."""

    def count(outputs: Any, targets: Any, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        guess, true, counted = form.predict(outputs, targets)
        right = guess == true
        each = form.each(weights, true, counted)
        if each is not None:
            n = len(right)
            right, of = (right * each).reshape(n, -1), each.reshape(n, -1)
            return right.sum(1).double(), of.sum(1).double()
        if right.ndim == 1:
            return right.double(), None
        right = right.flatten(1)
        return right.sum(1).double(), right.new_full(
            (len(right),), right.shape[1], dtype=torch.double
        )

    return count


def _minus_the_loss(form: Form, loss: Loss) -> Accumulator:
    """Make minus the loss over all examples in one batch, for torch's losses of each position."""
    plain = losses.unreduced(loss)
    if plain is None:
        return Whole(loss, -1.0)
    binary = losses.takes_probabilities(loss) is not None
    of_classes = losses.takes_classes(loss)

    def parts(outputs: Any, targets: Any, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if of_classes and form.kind == "classes":
            outputs, targets = form.align(outputs, targets)
            weights = form.each(weights, form.truth(targets), None)
            if form.soft:
                targets = targets.to(outputs.dtype)
            else:
                targets = (targets > 0).long() if form.signed else targets.long()
        elif not of_classes and isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            if targets.shape != outputs.shape and targets.numel() == outputs.numel():
                targets = targets.reshape(outputs.shape)  # else they would be broadcast
            targets = targets.to(outputs.dtype) if binary else targets
        return losses.per_example(plain, loss, outputs, targets, weights)

    return Mean(parts, total=losses.reduction_of(loss) == "sum")


@dataclass(frozen=True)
class Metric:
    """A metric that has a name.

    Attributes:
        summary: one line.
        decomposes: ``"mean"``: of a number of each example; ``"counts"``: of (true, decided);
            ``"outputs"``: of the outputs of all examples at once; ``"texts"``: of a number of each
            example, whose outputs and targets are texts.
        make: takes the form of outputs and targets, and the loss; returns an accumulator, which
            turns what is to be small into what is to be large.
        higher_is_better: the direction.
        span: the smallest and the largest value; None: not bounded.
        measure: the function of counts or outputs; None for minus the loss.
    """

    summary: str
    decomposes: Literal["mean", "counts", "outputs", "texts"]
    make: Callable[[Form, Loss], Accumulator]
    higher_is_better: bool = True
    span: tuple[float, float] | None = (0.0, 1.0)
    measure: ConfusionMetric | OutputMetric | None = None

    @property
    def fraction(self) -> bool:
        """Whether it lies in [0, 1], so that it is told in percent."""
        return self.span == (0.0, 1.0)

    @property
    def best(self) -> float:
        """The highest value as a fitness, which is turned where lower is better."""
        if self.span is None:
            return math.inf
        return self.span[1] if self.higher_is_better else -self.span[0]


def _of_counts(measure: ConfusionMetric) -> Metric:
    def make(form: Form, _: Loss) -> Accumulator:
        return Counted(measure, form)

    return Metric(measure.summary, "counts", make, measure.higher_is_better, measure.span, measure)


def _of_outputs(measure: OutputMetric) -> Metric:
    def make(form: Form, _: Loss) -> Accumulator:
        return OfOutputs(measure, form)

    return Metric(measure.summary, "outputs", make, measure.higher_is_better, measure.span, measure)


def _of_texts(measure: TextMetric) -> Metric:
    def each(outputs: Any, targets: Any, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        numbers = measure(outputs, targets)
        return (numbers, None) if weights is None else (numbers * weights.cpu(), weights.cpu())

    return Metric(measure.summary, "texts", lambda *_: Mean(each), span=measure.span)


METRICS: dict[str, Metric] = {
    **{name: _of_counts(measure) for name, measure in CONFUSION_METRICS.items()},
    "accuracy": Metric(
        "share of right predictions",
        "mean",
        lambda form, _: Mean(_right(form)),
        measure=CONFUSION_METRICS["accuracy"],
    ),
    "f-beta(2)": _of_counts(f_beta(2)),
    **{name: _of_outputs(measure) for name, measure in OUTPUT_METRICS.items()},
    **{name: _of_texts(measure) for name, measure in TEXT_METRICS.items()},
    "neg-loss": Metric(
        "minus the loss (cross-entropy unless told)", "mean", _minus_the_loss, span=None
    ),
}
# names that take a number, of which the table has a usual one
_OF_A_NUMBER: dict[str, Callable[[float], Metric]] = {
    "f-beta": lambda beta: _of_counts(f_beta(beta)),
    "recall-at-precision": lambda precision: _of_outputs(recall_at_precision(precision)),
    "precision-at-k": lambda k: _of_outputs(precision_at_k(k)),
}


def find_metric(name: str, costs: Any = None) -> Metric:
    """Return a metric by its name: of the table, of a number such as ``f-beta(0.5)``, or ``cost``.

    Args:
        name: of it.
        costs: the table of the metric ``cost``, (C, C): rows are true classes, columns decisions.

    Raises:
        InputError: an unknown name, a number that does not fit, a table that is none.

    Example:
        >>> find_metric("f-beta(0.5)").summary
        'F-beta with beta 0.5'
    """
    base, _, number = name.partition("(")
    usual = next((known for known in METRICS if known.startswith(f"{base}(")), None)
    try:
        if usual is not None:
            if not number.endswith(")"):
                raise ValueError("it takes a number")
            return _OF_A_NUMBER[base](float(number[:-1]))
        if name == "cost":
            if costs is None:
                raise InputError("the metric cost needs a table: costs=, or --costs FILE")
            return _of_counts(cost(costs))
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        write = f"write {usual}, got {name!r}: " if usual is not None else ""
        raise InputError(f"{write}{error}") from error
    if name not in METRICS:
        raise unknown_name("metric", name, [*METRICS, "cost"])
    return METRICS[name]


def is_to_be_large(name: str) -> bool:
    """Return the direction of a metric by its name; of what has none, as a fitness sees it: True.

    Example:
        >>> is_to_be_large("mcc"), is_to_be_large("expected-calibration-error")
        (True, False)
    """
    try:
        return find_metric(name).higher_is_better
    except InputError:
        return name != "cost"


MetricLike = str | Callable[[Any, Any], Any]


def make_metric(
    metric: MetricLike | Any,
    *,
    loss: Callable[..., Tensor] = F.cross_entropy,
    higher_is_better: bool | None = None,
    reader: Reader | None = None,
    costs: Any = None,
) -> Callable[[], Accumulator]:
    """Return a factory of accumulators for a metric, so that higher is better.

    Args:
        metric: a name, see `find_metric`; a torchmetrics metric; a function or scorer of
            scikit-learn's; or a callable on (outputs, targets).
        loss: what ``"neg-loss"`` is minus of.
        higher_is_better: needed where a torchmetrics metric does not say, and for a loss; for any
            other callable None means True.
        reader: finds how outputs and targets are read, and keeps it; None: each accumulator does.
        costs: the table of the metric ``"cost"``.

    Raises:
        ValueError: an unknown name; a metric of unknown direction; a collection of metrics.
    """
    if costs is not None and metric != "cost":
        raise InputError(f"costs= is the table of metric='cost', got metric={metric!r}")
    if isinstance(metric, str):
        return _named(metric, find_metric(metric, costs), loss, higher_is_better, reader)
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
        return partial(Whole, function, 1.0 if up else -1.0, False, found.weighs)
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
    name: str, metric: Metric, loss: Loss, higher_is_better: bool | None, reader: Reader | None
) -> Callable[[], Accumulator]:
    if higher_is_better not in (None, metric.higher_is_better):
        direction = "higher" if metric.higher_is_better else "lower"
        raise ValueError(
            f"{direction} is better for {name!r} by definition: leave higher_is_better out"
        )
    build = metric.make
    of_loss = build is _minus_the_loss
    if metric.decomposes == "texts" or (of_loss and not losses.takes_classes(loss)):
        return lambda: build(Form("unknown"), loss)
    who = f"metric {name!r}"

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
