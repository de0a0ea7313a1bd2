"""Metrics that a fitness can maximise: a name, a torchmetrics metric, or any callable.

A metric here is told of batches of (outputs, targets) and gives one number, higher is better, and,
where the metric is a mean over examples, the number of each example: paired tests need those.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.scoring.batches import concatenate, map_tensors

PerExample = Callable[[Any, Any], Tensor]


class Accumulator(ABC):
    """Takes batches of (outputs, targets) and gives (value, per-example values or None).

    Attributes:
        gives_per_example: whether there are per-example values; None where only computing tells.
    """

    gives_per_example: bool | None = None

    @abstractmethod
    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""

    @abstractmethod
    def compute(self) -> tuple[float | Tensor, Tensor | None]:
        """Return the metric over all batches taken, and its value for each example, shape (n,).

        The metric is a number, or a tensor of one where reading it would wait for the device.
        """


class _Mean(Accumulator):
    """The mean of a per-example metric, never holding more than its n values."""

    gives_per_example = True

    def __init__(self, function: PerExample) -> None:
        self.function = function
        self.parts: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        self.parts.append(self.function(outputs, targets).double())

    def compute(self) -> tuple[float | Tensor, Tensor | None]:
        values = torch.cat(self.parts)
        return values.mean(), values


class _Whole(Accumulator):
    """A metric of all examples at once, such as macro-F1: outputs are kept until the end."""

    def __init__(
        self, function: Callable[[Any, Any], Any], sign: float, per_example: bool | None = None
    ) -> None:
        self.function = function
        self.sign = sign
        self.gives_per_example = per_example
        self.outputs: list[Any] = []
        self.targets: list[Any] = []

    def update(self, outputs: Any, targets: Any) -> None:
        self.outputs.append(outputs)
        self.targets.append(targets)

    def compute(self) -> tuple[float, Tensor | None]:
        targets = concatenate(self.targets)
        result = self.function(concatenate(self.outputs), targets)
        n = len(targets) if isinstance(targets, Tensor) and targets.ndim else None
        if isinstance(result, Tensor) and result.ndim == 1 and n in (None, len(result)):
            values = self.sign * result.detach().double()
            return float(values.mean()), values
        return self.sign * _number(result), None


class _TorchMetric(Accumulator):
    """A torchmetrics metric, on a copy: the user's own keeps its state."""

    gives_per_example = False

    def __init__(self, metric: Any, sign: float) -> None:
        self.metric = copy.deepcopy(metric)
        self.metric.reset()
        self.sign = sign

    def update(self, outputs: Any, targets: Any) -> None:
        if isinstance(outputs, Tensor):
            self.metric.to(outputs.device)
        self.metric.update(outputs, targets)

    def compute(self) -> tuple[float, Tensor | None]:
        return self.sign * _number(self.metric.compute()), None


class Stacked:
    """Takes the outputs of several members at once, and gives each member's metric.

    A metric of each example is computed for all members together; any other member by member.

    Args:
        make: what `make_metric` gave.
        n: how many members.
    """

    def __init__(self, make: Callable[[], Accumulator], n: int) -> None:
        self._members: list[Accumulator | Exception] = [make() for _ in range(n)]
        first = self._members[0]
        self._per_example = first.function if isinstance(first, _Mean) else None
        self._parts: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch: outputs with a leading dimension of members, targets without."""
        n = len(self._members)
        if self._per_example is not None:
            together = map_tensors(outputs, lambda t: t.flatten(0, 1))
            repeated = map_tensors(targets, lambda t: t.repeat(n, *[1] * (t.dim() - 1)))
            values = self._per_example(together, repeated).double()
            self._parts.append(values.view(n, -1))
            return
        for i, member in enumerate(self._members):
            if isinstance(member, Accumulator):
                try:
                    member.update(map_tensors(outputs, operator.itemgetter(i)), targets)
                except Exception as error:
                    self._members[i] = error

    def compute(self) -> list[tuple[float | Tensor, Tensor | None] | Exception]:
        """Return for each member what `Accumulator.compute` gives, or what its metric raised."""
        if self._parts:
            values = torch.cat(self._parts, dim=1)  # (n, examples)
            return list(zip(values.mean(1).tolist(), values, strict=True))  # one transfer
        return [_computed(member) for member in self._members]


def _computed(
    member: Accumulator | Exception,
) -> tuple[float | Tensor, Tensor | None] | Exception:
    if isinstance(member, Exception):
        return member
    try:
        return member.compute()
    except Exception as error:
        return error


def _number(result: Any) -> float:
    if isinstance(result, Tensor) and result.numel() == 1:
        return float(result)
    if isinstance(result, Tensor | Mapping | Sequence):
        shape = f" of shape {tuple(result.shape)}" if isinstance(result, Tensor) else ""
        raise ValueError(
            f"a metric must give one number, or one for each example, got a "
            f"{type(result).__name__}{shape}"
        )
    return float(result)


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


NAMES: dict[str, str] = {
    "accuracy": "share of right predictions",
    "balanced-accuracy": "mean recall over classes",
    "macro-f1": "mean F1 over classes",
    "neg-loss": "minus the loss (cross-entropy unless told)",
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
        metric: a name of `NAMES`, a torchmetrics metric, or a callable on (outputs, targets).
        loss: what ``"neg-loss"`` is minus of.
        higher_is_better: needed where a torchmetrics metric does not say; for a callable None
            means True.

    Raises:
        ValueError: an unknown name; a metric of unknown direction; a collection of metrics.
    """
    if isinstance(metric, str):
        return _named(metric, loss, higher_is_better)
    if hasattr(metric, "update") and hasattr(metric, "compute") and hasattr(metric, "reset"):
        declared = getattr(metric, "higher_is_better", None)
        direction = declared if higher_is_better is None else higher_is_better
        if not isinstance(direction, bool):
            raise ValueError(
                f"{type(metric).__name__} does not say whether higher is better: "
                "pass higher_is_better=True or False"
            )
        sign = 1.0 if direction else -1.0
        return lambda: _TorchMetric(metric, sign)
    if callable(metric):
        sign = -1.0 if higher_is_better is False else 1.0
        return lambda: _Whole(metric, sign)
    raise ValueError(
        f"metric must be a name ({', '.join(NAMES)}), a torchmetrics metric or a callable on "
        f"(outputs, targets), got {metric!r}"
    )


def _named(
    name: str, loss: Callable[..., Tensor], higher_is_better: bool | None
) -> Callable[[], Accumulator]:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown metric {name!r}: known are {', '.join(NAMES)}{hint}")
    if higher_is_better is False:
        raise ValueError(f"higher is better for {name!r} by definition: leave higher_is_better out")
    if name == "accuracy":
        return lambda: _Mean(accuracy)
    if name == "neg-loss":
        negative = _negative_loss(loss)
        if negative is not None:
            return lambda: _Mean(negative)
        return lambda: _Whole(loss, -1.0)
    _torchmetrics()  # say now, not in the middle of a run, that it is missing
    function = balanced_accuracy if name == "balanced-accuracy" else macro_f1
    return lambda: _Whole(function, 1.0, per_example=False)
