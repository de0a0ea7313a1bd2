"""Accumulators: batches of (outputs, targets) in, one number out, higher is better.

Where a metric is a mean over examples they return the number of each example, too: paired tests
need those.
"""

from __future__ import annotations

import copy
import operator
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.scoring.splitting import Weighted, weigh
from evostep.scoring.nests import concatenate, leaves, map_tensors

PerExample = Callable[[Any, Any], Tensor]


class Accumulator(ABC):
    """Takes batches of (outputs, targets) and returns (value, per-example values or None).

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


class Mean(Accumulator):
    """The mean of a per-example metric, never holding more than its n values."""

    gives_per_example = True

    def __init__(self, function: PerExample) -> None:
        self.function = function
        self.parts: list[Tensor] = []
        self.weights: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""
        if isinstance(targets, Weighted):
            self.weights.append(targets.weights)
            targets = targets.targets
        self.parts.append(self.function(outputs, targets).double())

    def compute(self) -> tuple[float | Tensor, Tensor | None]:
        """Return the value, and that of each example if there are such."""
        values = torch.cat(self.parts)
        if self.weights:
            values = weigh(values, torch.cat(self.weights))
        return values.mean(), values


class Whole(Accumulator):
    """A metric of all examples at once, such as macro-F1: outputs are kept until the end."""

    def __init__(
        self, function: Callable[[Any, Any], Any], sign: float, per_example: bool | None = None
    ) -> None:
        self.function = function
        self.sign = sign
        self.gives_per_example = per_example
        self.outputs: list[Any] = []
        self.weights: list[Tensor] = []
        self.targets: list[Any] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""
        if isinstance(targets, Weighted):
            self.weights.append(targets.weights)
            targets = targets.targets
        self.outputs.append(outputs)
        self.targets.append(targets)

    def compute(self) -> tuple[float, Tensor | None]:
        """Return the value, and that of each example if there are such."""
        targets = concatenate(self.targets)
        result = self.function(concatenate(self.outputs), targets)
        n = len(targets) if isinstance(targets, Tensor) and targets.ndim else None
        if isinstance(result, Tensor) and result.ndim == 1 and n in (None, len(result)):
            values = self.sign * result.detach().double()
            if self.weights:
                values = weigh(values, torch.cat(self.weights))
            return float(values.mean()), values
        if self.weights:
            raise _cannot_weigh("this metric of all examples")
        return self.sign * _number(result), None


class TorchMetric(Accumulator):
    """A torchmetrics metric, on a copy: the user's own keeps its state."""

    gives_per_example = False

    def __init__(self, metric: Any, sign: float) -> None:
        self.metric = blank(metric)
        self.sign = sign

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""
        if isinstance(targets, Weighted):
            raise _cannot_weigh(type(self.metric).__name__)
        if isinstance(outputs, Tensor):
            self.metric.to(outputs.device)
        self.metric.update(outputs, targets)

    def compute(self) -> tuple[float, Tensor | None]:
        """Return the value, and that of each example if there are such."""
        return self.sign * _number(self.metric.compute()), None


class Stacked:
    """Takes the outputs of several members at once, and returns each member's metric.

    A metric of each example is computed for all members together; any other member by member.

    Args:
        make: what `make_metric` returned.
        n: how many members.
    """

    def __init__(self, make: Callable[[], Accumulator], n: int) -> None:
        self._members: list[Accumulator | Exception] = [make() for _ in range(n)]
        first = self._members[0]
        self._per_example = first.function if isinstance(first, Mean) else None
        self._parts: list[Tensor] = []
        self._weights: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch: outputs with a leading dimension of members, targets without."""
        n = len(self._members)
        if self._per_example is not None:
            if isinstance(targets, Weighted):
                self._weights.append(targets.weights)
                targets = targets.targets
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
        """Return for each member what `Accumulator.compute` returns, or what its metric raised."""
        if self._parts:
            values = torch.cat(self._parts, dim=1)  # (n, examples)
            if self._weights:
                values = weigh(values, torch.cat(self._weights))
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


def blank(metric: Any) -> Any:
    """Return a metric like this one that has seen nothing, without a copy of what that one has.

    A torchmetrics metric shares tensors with the other until it is reset, which gives it new ones;
    one of another kind may clear its own in place, and is copied in full.
    """
    torchmetrics = sys.modules.get("torchmetrics")
    shared: dict[int, Any] = {}
    if torchmetrics is not None and isinstance(metric, torchmetrics.Metric):
        for module in metric.modules():
            for held in (vars(module), module._parameters, module._buffers):
                values = [v for v in held.values() if isinstance(v, Tensor | list)]
                shared.update((id(tensor), tensor) for tensor in leaves(values))
    new = copy.deepcopy(metric, shared)
    new.reset()
    return new


def _cannot_weigh(what: str) -> InputError:
    return InputError(
        f"{what} cannot weigh examples by the weights in the batches: take 'accuracy', 'neg-loss' "
        "or a callable that returns a value for each example, or leave the weights out by forward="
    )


def _number(result: Any) -> float:
    if isinstance(result, Tensor) and result.numel() == 1:
        return float(result)
    if isinstance(result, Tensor | Mapping | Sequence):
        shape = f" of shape {tuple(result.shape)}" if isinstance(result, Tensor) else ""
        raise ValueError(
            f"a metric must return one number, or one for each example, got a "
            f"{type(result).__name__}{shape}"
        )
    return float(result)
