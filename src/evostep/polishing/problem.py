"""The problem of a decision: outputs that are there, what is true, and who belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.scoring.confusion import count, recalls

Kind = Literal["classes", "binary", "labels"]


@dataclass(frozen=True, eq=False)  # one problem is another's equal only if it is the same
class Problem:
    """Outputs of a network for n examples, and what is true of them.

    A decision adds a bias to the outputs, then takes the largest (classes), or what lies above
    zero (one binary label, or several).

    Attributes:
        outputs: (n, C) logits; (n, 1) for one binary label, (n, L) for several.
        targets: (n,) classes, or zeros and ones; (n, L) for several labels.
        kind: how outputs are decided.
        weights: (n,) what each example counts; None: 1.
        groups: (n,) integers, equal where examples belong together; None: each stands alone.
    """

    outputs: Tensor
    targets: Tensor
    kind: Kind
    weights: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def biases(self) -> int:
        """How many numbers a decision has."""
        return self.outputs.shape[1]

    @property
    def classes(self) -> int:
        """How many classes a decision tells apart."""
        return self.outputs.shape[1] if self.kind == "classes" else 2

    @property
    def several(self) -> bool:
        """Whether examples have several labels."""
        return self.kind == "labels"

    def decide(self, bias: Tensor) -> Tensor:
        """Return decisions under biases (..., 1 or n, C): (..., n), or (..., n, L) for labels."""
        return self.decided(self.adjusted(bias))

    def adjusted(self, bias: Tensor) -> Tensor:
        """Return the outputs under biases (..., 1 or n, C): (..., n, C)."""
        return self.outputs + bias.to(self.outputs)

    def decided(self, outputs: Tensor) -> Tensor:
        """Return what outputs (..., n, C) decide: (..., n), or (..., n, L) for labels."""
        if self.kind == "classes":
            return outputs.argmax(-1)
        above = (outputs > 0).long()
        return above.squeeze(-1) if self.kind == "binary" else above

    def counts(self, decisions: Tensor, rows: Tensor | None = None) -> Tensor:
        """Count (true, decided), with `rows` (..., n) telling how often each example counts."""
        weights = self.weights
        if rows is not None:
            weights = rows.double() if weights is None else rows * weights
        return count(decisions, self.targets, self.classes, weights)

    def recalls(self, counts: Tensor) -> Tensor:
        """Return the recall of each class, or of each label: (..., C) or (..., L)."""
        return recalls(counts)[..., 1] if self.several else recalls(counts)

    def of(self, outputs: Any) -> Problem:
        """Return the same problem under other outputs."""
        other = make_problem(outputs, self.targets)
        return replace(other, weights=self.weights, groups=self.groups)

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
    """Return the problem of the examples of two, without weights and groups."""
    outputs, targets = (
        torch.cat([getattr(one, name), getattr(other, name).to(getattr(one, name))])
        for name in ("outputs", "targets")
    )
    return Problem(outputs, targets, one.kind)


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
