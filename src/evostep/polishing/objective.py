"""What is maximised: a metric of decisions or of outputs, a sum of metrics, under constraints.

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

from evostep.errors import InputError
from evostep.polishing.own import name_of, own_metric
from evostep.polishing.problem import Problem, Seen
from evostep.scoring.confusion import ConfusionMetric
from evostep.scoring.metrics import find_metric
from evostep.scoring.outputs import OutputMetric

Measure = ConfusionMetric | OutputMetric

_SIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Constraint:
    """A metric that must not pass a bound: a number, or a share of the checkpoint's value."""

    name: str
    metric: Measure
    side: str
    bound: float
    of_parent: bool

    def value(self, own: Tensor | Seen, *, several: bool) -> Tensor:
        """Return its metric."""
        return _measure(self.metric, own, several)

    def broken_by(self, own: Tensor | Seen, parent: Tensor | Seen, *, several: bool) -> Tensor:
        """Return by how much decisions break it, 0 where they do not; (...)."""
        value = self.value(own, several=several)
        bound = torch.as_tensor(self.bound, dtype=value.dtype, device=value.device)
        if self.of_parent:
            bound = bound * self.value(parent, several=several)
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
    terms: tuple[tuple[float, Measure], ...]
    constraints: tuple[Constraint, ...] = field(default=())

    @property
    def higher_is_better(self) -> bool:
        """The direction: a sum is made to be large, one metric as its own direction says."""
        return len(self.terms) > 1 or self.terms[0][1].higher_is_better

    @property
    def fraction(self) -> bool:
        """Whether it is told in percent."""
        return all(metric.span == (0.0, 1.0) for _, metric in self.terms)

    @property
    def metrics(self) -> tuple[Measure, ...]:
        """All that is measured, in sum and constraints."""
        terms = (metric for _, metric in self.terms)
        return (*terms, *(constraint.metric for constraint in self.constraints))

    @property
    def of_outputs(self) -> bool:
        """Whether a metric needs more than the counts of decisions."""
        return any(isinstance(metric, OutputMetric) for metric in self.metrics)

    def look(self, problem: Problem, outputs: Tensor, rows: Tensor | None = None) -> Tensor | Seen:
        """Return what is measured of outputs (..., n, C): counts, or all, where a metric needs it.

        Args:
            problem: targets and weights.
            outputs: adjusted.
            rows: (n,) how often each example counts; None: once.
        """
        if self.of_outputs:
            return problem.seen(outputs, rows)
        return problem.counts(problem.decided(outputs), rows)

    def value(self, own: Tensor | Seen, *, several: bool) -> Tensor:
        """Return the number that is reported, (...), of counts (..., C, C) or what `look` gave."""
        parts = [factor * _measure(metric, own, several) for factor, metric in self.terms]
        return torch.stack(parts).sum(0)

    def fitness(self, own: Tensor | Seen, parent: Tensor | Seen, *, several: bool) -> Tensor:
        """Return what selection maximises: the value, far below it where a constraint is broken.

        Args:
            own: counts of decisions, or what `look` gave.
            parent: of the checkpoint on the same examples, broadcast against `own`.
            several: whether there are several labels.
        """
        value = self.value(own, several=several)
        value = value if self.higher_is_better else -value
        for constraint in self.constraints:
            broken = constraint.broken_by(own, parent, several=several)
            value = torch.where(broken > 0, value.clamp(max=0) - _FAR - broken, value)
        return value


def _measure(metric: Measure, own: Tensor | Seen, several: bool) -> Tensor:
    if isinstance(metric, ConfusionMetric):
        return metric(own if isinstance(own, Tensor) else own.counts, several=several)
    assert isinstance(own, Seen), "a metric of outputs is measured of outputs"
    return own.measure(metric)


# Made of the order of the scores alone, which a bias does not change where there are two classes.
_OF_THE_ORDER = ("auc", "auroc", "roc-auc", "average-precision")
CANNOT_CHANGE = (
    "follows from the order of the scores, which no decision changes: take balanced-accuracy, "
    "macro-f1 or f-beta(2)"
)
_FAR = 1e6  # below every value of a decision that breaks nothing

_NUMBER = r"[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?"
_METRIC = r"[a-z][a-z0-9-]*(?:\([^()]*\))?"
_TERM = re.compile(rf"(?:({_NUMBER})\s*\*\s*)?({_METRIC})$")
_CONSTRAINT = re.compile(rf"({_METRIC})\s*(>=|<=)\s*(?:({_NUMBER})(?:\s*\*\s*(parent))?|(parent))$")


def make_objective(
    metric: Any, *, costs: Any = None, higher_is_better: bool | None = None
) -> Objective:
    """Return the objective of a metric that is written, or is a metric by itself.

    Args:
        metric: see `parse_objective` and `evostep.polishing.own.own_metric`.
        costs: see `parse_objective`.
        higher_is_better: the direction of a metric that does not say it.

    Raises:
        InputError: what is no metric; a direction beside a text, which says its own.
    """
    if not isinstance(metric, str):
        found = own_metric(metric, higher_is_better)
        return Objective(name_of(metric), ((1.0, found),))
    if higher_is_better is not None:
        raise InputError(f"{metric!r} has its direction: leave higher_is_better out")
    return parse_objective(metric, costs=costs)


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


def named_metric(name: str, costs: Any = None) -> Measure:
    """Return a metric by its name: of the table, of a number such as ``f-beta(2)``, or ``cost``."""
    if name.partition("(")[0] in _OF_THE_ORDER:
        raise InputError(f"{name} {CANNOT_CHANGE}")
    found = find_metric(name, costs).measure
    if found is None:
        raise InputError(f"{name} is a loss: take its gradient, and polish what no loss expresses")
    return found


def _signed(body: str) -> list[tuple[float, str]]:
    pieces = re.split(r"\s+([+-])\s+", body)
    signs = [1.0, *(1.0 if sign == "+" else -1.0 for sign in pieces[1::2])]
    return [
        (-sign, piece[1:].strip()) if piece.startswith("-") else (sign, piece)
        for sign, piece in zip(signs, pieces[::2], strict=True)
    ]
