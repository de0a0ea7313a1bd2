"""Metrics that a fitness can maximise: a name, a torchmetrics metric, or any callable.

`METRICS` is the table: a new metric with a name is one function and one row.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.errors import unknown_name
from evostep.scoring.accumulators import Accumulator, Mean, PerExample, TorchMetric, Whole, blank


def predictions(outputs: Tensor, targets: Tensor) -> Tensor:
    """Turn outputs (logits) into predictions comparable with `targets`.

    Args:
        outputs: (n, classes, ...) for classes; (n,) or (n, 1) for one binary label; the shape of
            `targets` for several labels (thresholded at logit 0).
        targets: (n, ...) integer classes, or labels in {0, 1}.

    Returns:
        A tensor of `targets`' shape.

    Raises:
        ValueError: shapes that fit none of these.
    """
    if outputs.shape == targets.shape:
        return (outputs > 0).to(targets.dtype)
    if outputs.ndim == targets.ndim + 1 and outputs.shape[1] > 1:
        return outputs.argmax(1)
    if outputs.numel() == targets.numel():
        return (outputs > 0).to(targets.dtype).view_as(targets)
    raise ValueError(
        f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape "
        f"{tuple(targets.shape)}: expected (n, classes, ...) for targets (n, ...), or equal shapes "
        "for several binary labels"
    )


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of right predictions of each example, shape (n,), in [0, 1].

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> accuracy(logits, torch.tensor([0, 0])).tolist()
        [1.0, 0.0]
    """
    right = predictions(outputs, targets) == targets
    return right.flatten(1).double().mean(1) if right.ndim > 1 else right.double()


def _labels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int, bool]:
    """Return predictions, integer targets, the number of classes, and if labels are several."""
    predicted = predictions(outputs, targets).long()
    targets = targets.long()
    several = outputs.ndim > 1 and outputs.shape == targets.shape and outputs.shape[1] > 1
    binary = outputs.shape == targets.shape or outputs.shape[1] == 1
    return predicted, targets, 2 if binary else outputs.shape[1], several


def _torchmetrics() -> Any:
    try:
        from torchmetrics.functional import classification
    except ImportError as error:
        raise ImportError(
            "this metric needs torchmetrics: pip install 'evostep[metrics]'"
        ) from error
    return classification


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the mean recall over the classes that occur in `targets`, in [0, 1].

    For several binary labels: the mean over labels of each label's balanced accuracy.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        >>> balanced_accuracy(logits, torch.tensor([0, 0, 0, 1]))
        0.5
    """
    classification = _torchmetrics()
    predicted, targets, classes, several = _labels(outputs, targets)
    columns = range(targets.shape[1]) if several else (None,)
    means = []
    for column in columns:
        target = targets.flatten() if column is None else targets[:, column].flatten()
        guess = predicted.flatten() if column is None else predicted[:, column].flatten()
        recall = classification.multiclass_recall(guess, target, classes, average="none")
        occurs = torch.bincount(target, minlength=classes) > 0
        means.append(recall[occurs].mean())
    return float(torch.stack(means).mean())


def macro_f1(outputs: Tensor, targets: Tensor) -> float:
    """Return the unweighted mean over classes (or labels) of their F1, in [0, 1].

    Classes that occur neither in the targets nor among the predictions are left out.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> macro_f1(logits, torch.tensor([0, 1]))
        1.0
    """
    classification = _torchmetrics()
    predicted, targets, classes, several = _labels(outputs, targets)
    if several:
        score = classification.multilabel_f1_score(
            predicted, targets, targets.shape[1], average="macro"
        )
    else:
        score = classification.multiclass_f1_score(predicted, targets, classes, average="macro")
    return float(score)


def _parameters(function: Callable[..., Any]) -> Collection[str]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # written in C++, as some of torch's are
        return ()


def _negative_loss(loss: Callable[..., Tensor]) -> PerExample | None:
    """Make minus the loss of each example from a loss that can be told not to reduce."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        module: Any = copy.deepcopy(loss)
        module.reduction = "none"
        unreduced: Callable[..., Tensor] = module
    elif not isinstance(loss, nn.Module) and "reduction" in _parameters(loss):

        def unreduced(outputs: Any, targets: Any) -> Tensor:
            return loss(outputs, targets, reduction="none")
    else:
        return None

    def negative(outputs: Any, targets: Any) -> Tensor:
        values = -unreduced(outputs, targets)
        return values.flatten(1).mean(1) if values.ndim > 1 else values

    return negative


Loss = Callable[..., Tensor]


def _of_each_example(function: PerExample) -> Callable[[Loss], Callable[[], Accumulator]]:
    return lambda _: partial(Mean, function)


def _of_all_examples(
    function: Callable[[Any, Any], float],
) -> Callable[[Loss], Callable[[], Accumulator]]:
    def make(_: Loss) -> Callable[[], Accumulator]:
        _torchmetrics()  # say now, not in the middle of a run, that it is missing
        return partial(Whole, function, 1.0, per_example=False)

    return make


def _minus_the_loss(loss: Loss) -> Callable[[], Accumulator]:
    negative = _negative_loss(loss)
    return partial(Whole, loss, -1.0) if negative is None else partial(Mean, negative)


@dataclass(frozen=True)
class Metric:
    """A metric that has a name.

    Attributes:
        summary: one line.
        fraction: whether it lies in [0, 1], so that it is told in percent.
        make: takes the loss, returns a factory of accumulators.
    """

    summary: str
    fraction: bool
    make: Callable[[Loss], Callable[[], Accumulator]]


METRICS: dict[str, Metric] = {
    "accuracy": Metric("share of right predictions", True, _of_each_example(accuracy)),
    "balanced-accuracy": Metric(
        "mean recall over classes", True, _of_all_examples(balanced_accuracy)
    ),
    "macro-f1": Metric("mean F1 over classes", True, _of_all_examples(macro_f1)),
    "neg-loss": Metric("minus the loss (cross-entropy unless told)", False, _minus_the_loss),
}

MetricLike = str | Callable[[Any, Any], Any]


def make_metric(
    metric: MetricLike | Any,
    *,
    loss: Callable[..., Tensor] = F.cross_entropy,
    higher_is_better: bool | None = None,
) -> Callable[[], Accumulator]:
    """Return a factory of accumulators for a metric, so that higher is better.

    Args:
        metric: a name of `METRICS`, a torchmetrics metric, or a callable on (outputs, targets).
        loss: what ``"neg-loss"`` is minus of.
        higher_is_better: needed where a torchmetrics metric does not say; for a callable None
            means True.

    Raises:
        ValueError: an unknown name; a metric of unknown direction; a collection of metrics.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        if higher_is_better is False:
            raise ValueError(
                f"higher is better for {metric!r} by definition: leave higher_is_better out"
            )
        return METRICS[metric].make(loss)
    if hasattr(metric, "update") and hasattr(metric, "compute") and hasattr(metric, "reset"):
        declared = getattr(metric, "higher_is_better", None)
        direction = declared if higher_is_better is None else higher_is_better
        if not isinstance(direction, bool):
            raise ValueError(
                f"{type(metric).__name__} does not say whether higher is better: "
                "pass higher_is_better=True or False"
            )
        sign = 1.0 if direction else -1.0
        return partial(TorchMetric, blank(metric), sign)
    if callable(metric):
        sign = -1.0 if higher_is_better is False else 1.0
        return partial(Whole, metric, sign)
    raise ValueError(
        f"metric must be a name ({', '.join(METRICS)}), a torchmetrics metric or a callable on "
        f"(outputs, targets), got {metric!r}"
    )
