"""The problem of a decision: outputs that are there, what is true, and who belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.scoring.confusion import count, recalls
from evostep.scoring.outputs import Kind, OutputMetric

SCALE_UNIT = 0.5  # a step of the logarithm of the scale: a factor of about 1.6


@dataclass(frozen=True, eq=False)
class Seen:
    """Outputs of several candidates for the same examples, for metrics that need more than counts.

    Attributes:
        outputs: (..., n, C).
        problem: of the same examples.
    """

    outputs: Tensor
    problem: Problem

    @cached_property
    def counts(self) -> Tensor:
        """Counts of their decisions, (..., C, C)."""
        return self.problem.counts(self.problem.decided(self.outputs))

    def measure(self, metric: OutputMetric) -> Tensor:
        """Return a metric of each candidate's outputs, (...), float64."""
        of, each = self.problem, self.outputs.reshape(-1, *self.outputs.shape[-2:])
        found = [float(metric(own, of.targets, of.weights, kind=of.kind)) for own in each]
        return torch.tensor(found, dtype=torch.float64).view(self.outputs.shape[:-2])


@dataclass(frozen=True, eq=False)  # one problem is another's equal only if it is the same
class Problem:
    """Outputs of a network for n examples, and what is true of them.

    A decision adds a bias to the outputs, then takes the largest (classes), or what lies above
    zero (one binary label, or several). Where a metric reads probabilities the outputs are
    multiplied first, by a scale whose logarithm is the last of the decision's numbers.

    Attributes:
        outputs: (n, C) logits; (n, 1) for one binary label, (n, L) for several.
        targets: (n,) classes, or zeros and ones; (n, L) for several labels.
        kind: how outputs are decided.
        weights: (n,) what each example counts; None: 1.
        groups: (n,) integers, equal where examples belong together; None: each stands alone.
        scaled: whether a decision has a scale.
    """

    outputs: Tensor
    targets: Tensor
    kind: Kind
    weights: Tensor | None = None
    groups: Tensor | None = None
    scaled: bool = False

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def biases(self) -> int:
        """How many biases a decision has."""
        return self.outputs.shape[1]

    @property
    def unchanged(self) -> Tensor:
        """The decision that leaves outputs as they are: zeros, (P,), biases and maybe a scale."""
        return torch.zeros(self.biases + self.scaled, dtype=torch.float64)

    @property
    def classes(self) -> int:
        """How many classes a decision tells apart."""
        return self.outputs.shape[1] if self.kind == "classes" else 2

    @property
    def several(self) -> bool:
        """Whether examples have several labels."""
        return self.kind == "labels"

    def decide(self, bias: Tensor) -> Tensor:
        """Return decisions under biases (..., 1 or n, P): (..., n), or (..., n, L) for labels."""
        return self.decided(self.adjusted(bias))

    def adjusted(self, bias: Tensor) -> Tensor:
        """Return the outputs under biases (..., 1 or n, P): (..., n, C)."""
        if not self.scaled:
            return self.outputs + bias.to(self.outputs)
        scale = bias[..., -1:].exp().to(self.outputs)
        return self.outputs * scale + bias[..., :-1].to(self.outputs)

    def decided(self, outputs: Tensor) -> Tensor:
        """Return what outputs (..., n, C) decide: (..., n), or (..., n, L) for labels."""
        if self.kind == "classes":
            return outputs.argmax(-1)
        above = (outputs > 0).long()
        return above.squeeze(-1) if self.kind == "binary" else above

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of outputs (..., n, C), float64."""
        outputs = outputs.double()
        return outputs.softmax(-1) if self.kind == "classes" else outputs.sigmoid()

    def counts(self, decisions: Tensor, rows: Tensor | None = None) -> Tensor:
        """Count (true, decided), with `rows` (..., n) telling how often each example counts."""
        weights = self.weights
        if rows is not None:
            weights = rows.double() if weights is None else rows * weights
        return count(decisions, self.targets, self.classes, weights)

    def seen(self, outputs: Tensor, rows: Tensor | None = None) -> Seen:
        """Return outputs (..., n, C) as metrics see them, each example as often as `rows` (n,)."""
        if rows is None:
            return Seen(outputs, self)
        index = torch.arange(len(rows)).repeat_interleave(rows.long())
        weights = None if self.weights is None else self.weights[index]
        drawn = replace(self, targets=self.targets[index], weights=weights, groups=None)
        return Seen(outputs[..., index, :], drawn)

    def recalls(self, counts: Tensor) -> Tensor:
        """Return the recall of each class, or of each label: (..., C) or (..., L)."""
        return recalls(counts)[..., 1] if self.several else recalls(counts)

    def of(self, outputs: Any) -> Problem:
        """Return the same problem under other outputs."""
        other = make_problem(outputs, self.targets)
        return replace(self, outputs=other.outputs)

    def check_costs(self, costs: Any) -> None:
        """Raise an InputError where a table of costs has not one row for each class."""
        if costs is not None and len(costs) != self.classes:
            raise InputError(f"costs has {len(costs)} rows for {self.classes} classes")

    @property
    def group_count(self) -> int | None:
        """How many groups there are; None where each example stands alone."""
        return None if self.groups is None else int(self.groups.max()) + 1

    @property
    def strata(self) -> Tensor:
        """What examples are resampled and split within: their class; their rarest label."""
        if not self.several:
            return self.targets
        rarity = 1.0 / self.targets.double().sum(0).clamp(min=0.5)
        rarest = (self.targets * rarity).argmax(1) + 1
        return torch.where(self.targets.any(1), rarest, 0)


def make_problem(
    outputs: Any,
    targets: Any,
    *,
    weights: Any = None,
    groups: Sequence[Any] | None = None,
) -> Problem:
    """Check outputs and targets, and return the problem that they pose.

    Args:
        outputs: (n, C) logits of classes; (n,) or (n, 1) of one binary label; (n, L) for targets
            (n, L) of zeros and ones. Token and pixel outputs: one row a token.
        targets: (n,) integers, or (n, L).
        weights: (n,) finite numbers >= 0, not all zero.
        groups: n things that can be compared, such as a patient's name.

    Raises:
        InputError: what is not finite, does not fit, or has one class only.
    """
    outputs = torch.as_tensor(outputs).detach()
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    targets = torch.as_tensor(targets).detach()
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if outputs.ndim != 2 or len(outputs) != len(targets) or not len(outputs):
        raise InputError(
            f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}: "
            "expected (n, classes) and (n,), or (n, labels) twice, one row for each decision"
        )
    bad = (~outputs.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"outputs are not finite in {len(bad)} rows (the first are {bad[:5]}): leave these out"
        )
    if targets.is_floating_point() and not bool((targets == targets.round()).all()):
        raise InputError("targets must be classes, or zeros and ones, got fractions")
    kind: Kind = "binary" if outputs.shape[1] == 1 else "classes"
    if targets.ndim == 2:
        kind = "labels"
        if targets.shape != outputs.shape:
            raise InputError(
                f"targets of shape {tuple(targets.shape)} do not fit outputs of shape "
                f"{tuple(outputs.shape)}"
            )
    targets = targets.long()
    top = outputs.shape[1] if kind == "classes" else 2
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= top:
        raise InputError(f"targets must lie in 0 ... {top - 1}, got {low} ... {high}")
    if low == high:
        raise InputError(f"all targets are {low}: nothing can be decided about one class")
    return Problem(
        outputs, targets, kind, _weights(weights, len(outputs)), _groups(groups, len(outputs))
    )


def join(one: Problem, other: Problem) -> Problem:
    """Return the problem of the examples of two of a kind; groups of both are others."""

    def both(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second.to(first)])

    weights = groups = None
    if one.weights is not None or other.weights is not None:
        own = [
            torch.ones(len(p)).double() if p.weights is None else p.weights for p in (one, other)
        ]
        weights = both(*own)
    if one.groups is not None or other.groups is not None:
        first, second = (
            torch.arange(len(p)) if p.groups is None else p.groups for p in (one, other)
        )
        groups = both(first, second + int(first.max()) + 1)
    return Problem(
        both(one.outputs, other.outputs),
        both(one.targets, other.targets),
        one.kind,
        weights,
        groups,
        one.scaled,
    )


def _weights(weights: Any, n: int) -> Tensor | None:
    if weights is None:
        return None
    values: Tensor = torch.as_tensor(weights, dtype=torch.float64)
    if values.shape != (n,) or not values.isfinite().all() or (values < 0).any():
        raise InputError(f"weights must be {n} finite numbers >= 0")
    if not values.any():
        raise InputError("all weights are zero: no example counts")
    return values


def _groups(groups: Sequence[Any] | None, n: int) -> Tensor | None:
    if groups is None:
        return None
    values = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(values) != n:
        raise InputError(
            f"groups must name the group of each of the {n} examples, got {len(values)}"
        )
    numbers = {value: i for i, value in enumerate(dict.fromkeys(values))}
    if len(numbers) < 2:
        raise InputError("all examples are of one group: nothing can be left out to judge on")
    return torch.tensor([numbers[value] for value in values])
