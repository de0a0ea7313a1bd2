"""What is maximised: a metric of decisions, a sum of metrics, under constraints.

``worst-class-recall``, ``0.7*macro-f1 + 0.3*worst-class-recall``, ``f-beta(2)``,
``worst-class-recall subject to accuracy >= 0.99*parent``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError, unknown_name
from evostep.scoring.confusion import CONFUSION_METRICS, ConfusionMetric, cost, f_beta

_SIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Constraint:
    """A metric that must not pass a bound: a number, or a share of the checkpoint's value."""

    name: str
    metric: ConfusionMetric
    side: str
    bound: float
    of_parent: bool

    def broken_by(self, counts: Tensor, parent: Tensor, *, several: bool) -> Tensor:
        """Return by how much counts break it, 0 where they do not; (...)."""
        value = self.metric(counts, several=several)
        bound = torch.as_tensor(self.bound, dtype=value.dtype, device=value.device)
        if self.of_parent:
            bound = bound * self.metric(parent, several=several)
        gap = bound - value if self.side == ">=" else value - bound
        return torch.where(_SIDES[self.side](value, bound), 0.0, gap)


@dataclass(frozen=True)
class Objective:
    """What a decision is chosen by.

    Attributes:
        text: as the user wrote it.
        terms: factors and metrics, whose sum it is.
        constraints: what a decision must not break.
        higher_is_better: the direction of `value`.
    """

    text: str
    terms: tuple[tuple[float, ConfusionMetric], ...]
    constraints: tuple[Constraint, ...] = field(default=())

    @property
    def higher_is_better(self) -> bool:
        """The direction: a sum is made to be large, one metric as its own direction says."""
        return len(self.terms) > 1 or self.terms[0][1].higher_is_better

    @property
    def fraction(self) -> bool:
        """Whether it is told in percent."""
        return all(metric.span == (0.0, 1.0) for _, metric in self.terms)

    def value(self, counts: Tensor, *, several: bool) -> Tensor:
        """Return the number that is reported: (..., C, C) -> (...)."""
        parts = [factor * metric(counts, several=several) for factor, metric in self.terms]
        return torch.stack(parts).sum(0)

    def fitness(self, counts: Tensor, parent: Tensor, *, several: bool) -> Tensor:
        """Return what selection maximises: the value, far below it where a constraint is broken.

        Args:
            counts: of decisions.
            parent: of the checkpoint on the same examples, broadcast against `counts`.
            several: whether there are several labels.
        """
        value = self.value(counts, several=several)
        value = value if self.higher_is_better else -value
        for constraint in self.constraints:
            broken = constraint.broken_by(counts, parent, several=several)
            value = torch.where(broken > 0, value.clamp(max=0) - _FAR - broken, value)
        return value


# Made of the order of the scores alone, which a bias does not change where there are two classes.
_OF_THE_ORDER = (
    *("auc", "auroc", "roc-auc", "average-precision", "recall-at-precision", "precision-at-k"),
)
_FAR = 1e6  # below every value of a decision that breaks nothing

_NUMBER = r"[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?"
_METRIC = r"[a-z][a-z0-9-]*(?:\([^()]*\))?"
_TERM = re.compile(rf"(?:({_NUMBER})\s*\*\s*)?({_METRIC})$")
_CONSTRAINT = re.compile(rf"({_METRIC})\s*(>=|<=)\s*(?:({_NUMBER})(?:\s*\*\s*(parent))?|(parent))$")


def parse_objective(text: str, *, costs: Any = None) -> Objective:
    """Read an objective.

    Args:
        text: a metric; a sum ``a*metric + b*metric``; either with ``subject to METRIC >= NUMBER``,
            ``NUMBER*parent`` or ``parent``, several joined by ``and``.
        costs: the table of the metric ``cost``, (C, C), rows are true classes.

    Raises:
        InputError: what cannot be read; an unknown metric.

    Example:
        >>> parse_objective("0.7*macro-f1 + 0.3*accuracy subject to mcc >= 0.9*parent").fraction
        True
    """
    body, _, conditions = text.strip().partition(" subject to ")
    terms = []
    for sign, piece in _signed(body.strip()):
        found = _TERM.match(piece)
        if not found:
            raise InputError(
                f"cannot read {piece!r} in the metric {text!r}: "
                "write a name, or 0.7*macro-f1 + 0.3*worst-class-recall"
            )
        terms.append((sign * float(found[1] or 1), named_metric(found[2], costs)))
    for factor, metric in terms if len(terms) > 1 else ():
        if (factor > 0) != metric.higher_is_better:
            raise InputError(
                f"in {text!r} the {metric.summary} would go the wrong way: a sum is made to be "
                "large, so subtract what is to be small"
            )
    if len(terms) == 1 and terms[0][0] < 0:
        raise InputError(f"a metric has its direction: leave out the minus of {text!r}")
    constraints = []
    for piece in re.split(r"\s+and\s+", conditions.strip()) if conditions else ():
        found = _CONSTRAINT.match(piece)
        if not found:
            raise InputError(
                f"cannot read the constraint {piece!r}: write accuracy >= 0.9, or accuracy >= "
                "0.99*parent"
            )
        constraints.append(
            Constraint(
                found[1],
                named_metric(found[1], costs),
                found[2],
                float(found[3] or 1),
                bool(found[4] or found[5]),
            )
        )
    return Objective(text, tuple(terms), tuple(constraints))


def named_metric(name: str, costs: Any = None) -> ConfusionMetric:
    """Return a metric of decisions by its name: of the table, ``f-beta(2)`` or ``cost``."""
    base, _, argument = name.partition("(")
    argument = argument.removesuffix(")")
    if base == "f-beta":
        try:
            return f_beta(float(argument))
        except ValueError as error:
            raise InputError(f"write f-beta(2), got {name!r}: {error}") from error
    if base == "cost":
        if costs is None:
            raise InputError("the metric cost needs a table: costs=, or --costs FILE")
        try:
            return cost(costs)
        except ValueError as error:
            raise InputError(str(error)) from error
    if base in _OF_THE_ORDER:
        raise InputError(
            f"{base} follows from the order of the scores, which no decision changes: take "
            "balanced-accuracy, macro-f1 or f-beta(2)"
        )
    if base not in CONFUSION_METRICS or argument:
        raise unknown_name("metric", name, [*CONFUSION_METRICS, "f-beta(2)", "cost"])
    return CONFUSION_METRICS[base]


def _signed(body: str) -> list[tuple[float, str]]:
    pieces = re.split(r"\s+([+-])\s+", body)
    signs = [1.0, *(1.0 if sign == "+" else -1.0 for sign in pieces[1::2])]
    return [
        (-sign, piece[1:].strip()) if piece.startswith("-") else (sign, piece)
        for sign, piece in zip(signs, pieces[::2], strict=True)
    ]
