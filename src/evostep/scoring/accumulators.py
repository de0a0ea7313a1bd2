"""Accumulators: batches of (outputs, targets) in, one number out, higher is better.

Where a metric is a mean over examples they return the number of each example, too: paired tests
need those.
"""

from __future__ import annotations

import copy
import math
import operator
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.scoring.confusion import ConfusionMetric, count
from evostep.scoring.finite import NOT_FINITE
from evostep.scoring.forms import Form, Reader, needs_values
from evostep.scoring.nests import concatenate, leaves, map_tensors
from evostep.scoring.outputs import OutputMetric
from evostep.scoring.splitting import Weighted, unweighted, weigh, weights_of

# (outputs, targets, weights or None) -> (n,) of each example: a sum, and its divisor (None: 1)
PerExample = Callable[[Any, Any, Tensor | None], tuple[Tensor, Tensor | None]]

_AT_ONCE = 2**23  # numbers that the counts of several members take at once


class Accumulator(ABC):
    """Takes batches of (outputs, targets) and returns (value, per-example values or None).

    Attributes:
        gives_per_example: whether there are per-example values; None where only computing tells.
        waits: whether computing waits for the device.
    """

    gives_per_example: bool | None = None
    waits: bool = True

    @abstractmethod
    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""

    @abstractmethod
    def compute(self) -> tuple[float | Tensor, Tensor | None]:
        """Return the metric over all batches taken, and its value for each example, shape (n,).

        The metric is a number, or a tensor of one where reading it would wait for the device.
        """


class Mean(Accumulator):
    """A quotient of sums over examples, never holding more than their 2 n numbers.

    Args:
        function: returns the two numbers of each example.
        total: whether it is no quotient, but the sum.
    """

    gives_per_example = True
    waits = False

    def __init__(self, function: PerExample, *, total: bool = False) -> None:
        self.function = function
        self.total = total
        self.sums: list[Tensor] = []
        self.weights: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""
        sums, weights = weighted_sums(self.function, outputs, targets)
        self.sums.append(sums)
        if weights is not None:
            self.weights.append(weights)

    def compute(self) -> tuple[float | Tensor, Tensor | None]:
        """Return the value, and that of each example if there are such."""
        values = quotients(self.sums, self.weights, total=self.total)
        return values.mean(), values


def weighted_sums(function: PerExample, outputs: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
    """Return what `function` returns, float64, under the weights that targets have."""
    sums, weights = function(outputs, unweighted(targets), weights_of(targets))
    return sums.double(), None if weights is None else weights.double()


def quotients(sums: list[Tensor], weights: list[Tensor], *, total: bool = False) -> Tensor:
    """Return the numbers of each example, (..., n), whose mean is the quotient of two sums.

    Args:
        sums: (..., n) of each batch.
        weights: what to divide their sum by; empty: n.
        total: whether their mean is to be the sum itself.

    Example:
        >>> quotients([torch.tensor([1.0, 4.0])], [torch.tensor([1.0, 3.0])]).tolist()
        [0.5, 2.0]
    """
    values = torch.cat(sums, dim=-1)
    if total:
        return values * values.shape[-1]
    if weights:
        return values / torch.cat(weights, dim=-1).mean(-1, keepdim=True)
    return values


class Counted(Accumulator):
    """A metric of the counts of (true, decided), such as macro-F1: decisions are kept.

    Args:
        measure: the metric, of counts.
        form: how outputs and targets are read.
    """

    gives_per_example = False
    waits = False

    def __init__(self, measure: ConfusionMetric, form: Form) -> None:
        self.measure = measure
        self.form = form
        self.classes = 2
        self.parts: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def update(self, outputs: Any, targets: Any, members: int | None = None) -> None:
        """Take one batch; with `members`, of so many at once, one after the other."""
        guess, true, counted = self.form.predict(outputs, unweighted(targets))
        each = self.form.each(weights_of(targets), true, counted)
        if counted is not None:
            true = torch.where(counted, true, 0)
        self.classes = self.form.classes(outputs)
        lead = () if members is None else (members,)
        if members is not None:  # the truth is the same for all
            rows = len(true) // members
            true, each = true[:rows], None if each is None else each[:rows]
        if self.form.kind != "labels":
            true, each = true.flatten(), None if each is None else each.flatten()
        self.parts.append((guess.view(*lead, *true.shape), true, each))

    def compute(self) -> tuple[Tensor, None]:
        """Return the value, (members,) where there are such, and nothing for each example."""
        guess, true, each = zip(*self.parts, strict=True)
        several = self.form.kind == "labels"
        truth, weights = torch.cat(true), joined(each)
        decided = torch.cat(guess, dim=-truth.ndim)
        size = max(truth.numel(), self.classes**2 * (truth.shape[1] if several else 1))
        many = decided.ndim > truth.ndim
        values = [
            self.measure(count(some, truth, self.classes, each=weights), several=several)
            for some in (decided.split(max(1, _AT_ONCE // size)) if many else [decided])
        ]
        sign = 1.0 if self.measure.higher_is_better else -1.0
        return sign * (torch.cat(values) if many else values[0]), None


class OfOutputs(Accumulator):
    """A metric of the outputs of all examples, such as a recall at a precision: they are kept.

    Args:
        measure: the metric.
        form: how outputs and targets are read.
    """

    gives_per_example = False
    waits = False

    def __init__(self, measure: OutputMetric, form: Form) -> None:
        self.measure = measure
        self.form = form
        self.parts: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch."""
        logits, true, counted = self.form.logits(outputs, unweighted(targets))
        each = self.form.each(weights_of(targets), true, counted)
        if self.form.kind != "labels":
            logits = logits.flatten(0, true.ndim - 1)  # (rows, classes) or (rows,)
            true, each = true.flatten(), None if each is None else each.flatten()
        if each is not None:  # what does not count may be anything
            silent = each == 0
            logits = logits.masked_fill(
                silent if silent.ndim == logits.ndim else silent[:, None], 0
            )
        self.parts.append((logits, true, each))

    def compute(self) -> tuple[Tensor, None]:
        """Return the value, and nothing for each example."""
        logits, true, each = zip(*self.parts, strict=True)
        kind = self.form.kind
        assert kind != "unknown", "a metric of outputs reads them"
        value = self.measure(torch.cat(logits), torch.cat(true), joined(each), kind=kind)
        return (value if self.measure.higher_is_better else -value), None


def joined(weights: Sequence[Tensor | None]) -> Tensor | None:
    """Return the weights of all batches; None where no batch has any."""
    found = [w for w in weights if w is not None]
    return torch.cat(found) if found else None


class Undecided(Accumulator):
    """The first scoring of a fitness: finds how outputs and targets are read, then goes on.

    Args:
        reader: finds it, and keeps it for the scorings to come.
        build: makes the accumulator of the form that is found.
        who: asks, to be told in errors.
        of_loss: see `evostep.scoring.forms.read_form`.
    """

    def __init__(
        self, reader: Reader, build: Callable[[Form], Accumulator], who: str, *, of_loss: bool
    ) -> None:
        self.reader, self.build, self.who, self.of_loss = reader, build, who, of_loss
        self.gives_per_example = build(Form("classes")).gives_per_example
        self.held: list[tuple[Any, Any]] = []
        self.made: Accumulator | None = None
        self.counted = False  # whether a target did

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch; it is held as long as only all values tell how it is read."""
        self.held.append((outputs, targets))
        if self.reader.form is not None or not needs_values(outputs, unweighted(targets)):
            self._take()

    def compute(self) -> tuple[float | Tensor, Tensor | None]:
        """Return the value, and that of each example if there are such."""
        self._take()
        assert self.made is not None, "it was just made"
        if not self.counted:
            mark = self.reader.known.ignore_index
            raise InputError(f"{self.who}: every target is {mark}, which does not count")
        return self.made.compute()

    def _take(self) -> None:
        plain = [(outputs, unweighted(targets)) for outputs, targets in self.held]
        form = self.reader.form or self.reader.settle(plain, self.who, of_loss=self.of_loss)
        if self.made is None:
            self.made = self.build(form)
        for (outputs, targets), (_, given) in zip(plain, self.held, strict=True):
            self.reader.check(outputs, targets, self.who, of_loss=self.of_loss)
            mark = form.ignore_index
            self.counted |= mark is None or bool((torch.as_tensor(targets) != mark).any())
            self.made.update(outputs, given)
        self.held = []


class Whole(Accumulator):
    """A function of all examples at once: outputs are kept until the end.

    Args:
        function: on (outputs, targets).
        sign: 1, or -1 where lower is better.
        per_example: whether it returns a number for each example; None: to be seen.
        weighs: whether it takes `weights`, too.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        sign: float,
        per_example: bool | None = None,
        weighs: bool = False,
    ) -> None:
        self.function = function
        self.sign = sign
        self.weighs = weighs
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
        weights = torch.cat(self.weights) if self.weights else None
        if weights is not None and self.weighs:
            result = self.function(concatenate(self.outputs), targets, weights)
            weights = None
        else:
            result = self.function(concatenate(self.outputs), targets)
        n = len(targets) if isinstance(targets, Tensor | list) and _sized(targets) else None
        values = _of_each(result, n)
        if values is not None:
            values = self.sign * values
            if weights is not None and weights.numel() == len(values):
                values, weights = weigh(values, weights.flatten()), None
            if weights is None:
                return float(values.mean()), values
        if weights is not None:
            raise _cannot_weigh("this metric of all examples")
        return self.sign * number(
            result, "a metric must return one number, or one for each example"
        ), None


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
        return self.sign * number(self.metric.compute(), "a metric must compute one number"), None


class Stacked:
    """Takes the outputs of several members at once, and returns each member's metric.

    A metric of each example, or of counts, is computed for all members together; any other member
    by member.

    Args:
        make: what `make_metric` returned.
        n: how many members.
    """

    def __init__(self, make: Callable[[], Accumulator], n: int) -> None:
        self._members: list[Accumulator | Exception] = [make() for _ in range(n)]
        first = self._members[0]
        self._mean = first if isinstance(first, Mean) else None
        self._counted = first if isinstance(first, Counted) else None
        self._sums: list[Tensor] = []
        self._weights: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch: outputs with a leading dimension of members, targets without."""
        n = len(self._members)
        if self._mean is not None or self._counted is not None:
            together = map_tensors(outputs, lambda t: t.flatten(0, 1))
            repeated = map_tensors(targets, lambda t: t.repeat(n, *[1] * (t.dim() - 1)))
        if self._counted is not None:
            self._counted.update(together, repeated, n)
            return
        if self._mean is not None:
            sums, weights = weighted_sums(self._mean.function, together, repeated)
            self._sums.append(sums.view(n, -1))
            if weights is not None:
                self._weights.append(weights.view(n, -1))
            return
        for i, member in enumerate(self._members):
            if isinstance(member, Accumulator):
                try:
                    member.update(map_tensors(outputs, operator.itemgetter(i)), targets)
                except Exception as error:
                    self._members[i] = error

    def compute(
        self, finite: Tensor | None = None
    ) -> list[tuple[float | Tensor, Tensor | None] | Exception | str]:
        """Return for each member what `Accumulator.compute` returns, or why there is nothing.

        Args:
            finite: (members,) bool, whether a member's outputs were; None: all were.
        """
        if self._mean is not None:
            values = quotients(self._sums, self._weights, total=self._mean.total)  # (n, examples)
            if finite is not None:
                values = torch.where(finite[:, None], values, torch.nan)
            return list(zip(values.mean(1).tolist(), values, strict=True))  # one transfer
        if self._counted is not None:
            values, _ = self._counted.compute()
            if finite is not None:
                values = torch.where(finite, values, torch.nan)
            return [(value, None) for value in values.tolist()]
        sound = [True] * len(self._members) if finite is None else finite.tolist()
        return [
            _computed(member) if fine else NOT_FINITE
            for member, fine in zip(self._members, sound, strict=True)
        ]


def _computed(
    member: Accumulator | Exception,
) -> tuple[float | Tensor, Tensor | None] | Exception:
    if isinstance(member, Exception):
        return member
    try:
        return member.compute()
    except Exception as error:
        return error


def _sized(targets: Any) -> bool:
    return not isinstance(targets, Tensor) or targets.ndim > 0


def _of_each(result: Any, n: int | None) -> Tensor | None:
    """Return a metric's values as (n,) float64, if it gave one for each example."""
    if isinstance(result, list | tuple) or type(result).__module__ == "numpy":
        try:
            result = torch.as_tensor(result)
        except (TypeError, ValueError, RuntimeError):
            return None
    if not isinstance(result, Tensor) or result.ndim == 0 or result.is_complex():
        return None
    if result.ndim == 2 and result.shape[1] == 1:
        result = result[:, 0]
    fits = n is None or len(result) == n
    return result.detach().double() if result.ndim == 1 and fits else None


def number(result: Any, must: str) -> float:
    """Return what a metric or a fitness gave as a number.

    Raises:
        InputError: it is none.
    """
    shape = getattr(result, "shape", None)
    try:
        if isinstance(result, str | bytes) or (shape is not None and math.prod(shape) != 1):
            raise TypeError
        return float(result if shape is None or shape == () else result.reshape(()))
    except (TypeError, ValueError, RuntimeError, AttributeError):
        of_shape = f" of shape {tuple(shape)}" if shape is not None else ""
        got = "None: is a `return` missing?" if result is None else f"a {type(result).__name__}"
        raise InputError(f"{must}, got {got}{of_shape}") from None


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
        f"{what} cannot weigh examples by the weights in the batches: take a metric by its name or "
        "a callable that returns a value for each example, or leave the weights out by forward="
    )
