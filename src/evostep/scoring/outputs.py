"""Metrics of outputs: what more than the decisions is needed for, such as their order.

`OUTPUT_METRICS` is the table: a metric of outputs is one function and one row. Those that take a
number have a row for a usual one, and `evostep.scoring.metrics.find_metric` makes the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.scoring import ranking, reliability

Kind = Literal["classes", "binary", "labels"]


@dataclass(frozen=True)
class OutputMetric:
    """A metric of the outputs of all examples.

    Attributes:
        summary: one line.
        function: (outputs, targets, weights, kind) -> a tensor of one number, float64. Outputs are
            logits: (n, C) of classes, (n,) or (n, 1) of one binary label, (n, L) of several;
            targets (n,) classes, (n,) or (n, L) zeros and ones; weights None, or finite numbers
            >= 0, (n,) or of the targets' shape. What weighs 0 may have any finite outputs.
        higher_is_better: the direction.
        span: the smallest and the largest value; None: not bounded.
    """

    summary: str
    function: Callable[[Tensor, Tensor, Tensor | None, Kind], Tensor]
    higher_is_better: bool = True
    span: tuple[float, float] | None = (0.0, 1.0)

    def __call__(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None, *, kind: Kind
    ) -> Tensor:
        """Return the metric of outputs: see `function`."""
        return self.function(outputs, targets, weights, kind)


def columns(
    outputs: Tensor, targets: Tensor, weights: Tensor | None, kind: Kind
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return each class, or label, against the rest: probabilities, truth (k, n), and weights.

    Example:
        >>> scores, truth, _ = columns(torch.zeros(1, 2), torch.tensor([1]), None, "classes")
        >>> scores.tolist(), truth.tolist()
        ([[0.5], [0.5]], [[0], [1]])
    """
    outputs = outputs.double().reshape(len(outputs), -1)
    if kind == "classes":
        scores = outputs.softmax(1)
        classes = torch.arange(outputs.shape[1], device=outputs.device)
        truth = (targets.reshape(-1, 1) == classes).long()
    else:
        scores, truth = outputs.sigmoid(), targets.long().reshape(outputs.shape)
    if weights is not None:
        weights = weights.double().reshape(len(outputs), -1).T
    return scores.T, truth.T, weights


def expected_calibration_error(
    outputs: Tensor, targets: Tensor, weights: Tensor | None, kind: Kind
) -> Tensor:
    """Return how far the probability of the prediction is from the share of right ones.

    Of one binary label what two classes with the logits 0 and the output would have, so that it
    does not depend on the layout; of several labels their mean. 15 bins.
    """
    outputs = outputs.double()
    if kind == "classes":
        confidence, guess = outputs.softmax(1).max(1)
    else:
        outputs = outputs.reshape(targets.shape)
        confidence, guess = outputs.abs().sigmoid(), (outputs > 0).long()
    return reliability.calibration_error(confidence, guess == targets, weights)


def recall_at_precision(precision: float) -> OutputMetric:
    """Return the recall that is reached at a precision, the mean over classes or labels.

    Raises:
        ValueError: a precision that is not in (0, 1].
    """
    if not 0 < precision <= 1:
        raise ValueError(
            f"the precision of recall-at-precision must be in (0, 1], got {precision:g}"
        )

    def function(o: Tensor, t: Tensor, w: Tensor | None, kind: Kind) -> Tensor:
        scores, truth, weights = columns(o, t, w, kind)
        return ranking.recall_at_precision(scores, truth, precision, weights).nanmean()

    return OutputMetric(f"recall where the precision is at least {precision:g}", function)


def precision_at_k(k: float) -> OutputMetric:
    """Return the precision at k, in the two meanings of the field.

    Of several labels: the share of true ones among the k labels that an example scores highest, the
    mean over examples (extreme classification). Else: the share of positives among the k examples
    that score highest (retrieval), of classes the mean over each against the rest.

    Raises:
        ValueError: k is not a whole number >= 1.
    """
    if not 1 <= k < torch.inf or k != int(k):
        raise ValueError(f"k of precision-at-k must be a whole number >= 1, got {k:g}")
    top = int(k)

    def function(o: Tensor, t: Tensor, w: Tensor | None, kind: Kind) -> Tensor:
        among, what = (o.shape[1], "labels") if kind == "labels" else (len(o), "examples")
        if top > among:
            raise InputError(f"precision-at-k({top}) of {among} {what}: k is {among} at most")
        if kind == "labels":
            if w is None:
                return ranking.precision_at_k(o, t, top).mean()
            w = w.double().reshape(len(o), -1)
            own = w.amax(1)  # of the example; within it labels count by their share of this
            found = ranking.precision_at_k(o, t, top, w / own[:, None])
            return torch.where(own > 0, own * found, 0.0).sum() / own.sum()
        scores, truth, weights = columns(o, t, w, kind)
        return ranking.precision_at_k(scores, truth, top, weights).mean()

    return OutputMetric(f"share of positives among the {top} highest", function)


OUTPUT_METRICS: dict[str, OutputMetric] = {
    "expected-calibration-error": OutputMetric(
        "distance of confidence and accuracy", expected_calibration_error, higher_is_better=False
    ),
    "recall-at-precision(0.9)": recall_at_precision(0.9),
    "precision-at-k(5)": precision_at_k(5),
}
