"""Every metric of a network's decisions as they are, with its interval; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from evostep.polishing.bootstrap import DRAWS, draw_values, interval, resample, wilson
from evostep.polishing.network import given_outputs
from evostep.polishing.objective import parse_objective
from evostep.polishing.problem import Problem
from evostep.polishing.settings import Settings
from evostep.scoring.batches import Forward
from evostep.scoring.confusion import CONFUSION_METRICS
from evostep.scoring.forms import Known
from evostep.scoring.outputs import Kind

_OF_PROBABILITIES = "expected-calibration-error"
_WORST = "worst-class-recall"


@dataclass(frozen=True)
class Estimate:
    """A metric with its percentile interval.

    Attributes:
        value: on the examples themselves.
        low: lower end of the two-sided 95% interval.
        high: its upper end.
        higher_is_better: the metric's direction.
        fraction: whether it is told in percent.
    """

    value: float
    low: float
    high: float
    higher_is_better: bool = True
    fraction: bool = True


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` found.

    Attributes:
        n: examples.
        groups: groups of examples that are drawn together; None where each stands alone.
        kind: ``"classes"``, ``"binary"`` or ``"labels"``.
        metrics: by name.
        classes: recall of every class, or of every label.
    """

    n: int
    groups: int | None
    kind: Kind
    metrics: Mapping[str, Estimate]
    classes: tuple[Estimate, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values, for JSON."""
        return {
            "n": self.n,
            "groups": self.groups,
            "kind": self.kind,
            "metrics": {name: vars(estimate) for name, estimate in self.metrics.items()},
            "classes": [vars(estimate) for estimate in self.classes],
        }


def evaluate(
    model: nn.Module | None,
    examples: Iterable[Any],
    metric: Any = None,
    *,
    costs: Any = None,
    weights: Any = None,
    groups: Sequence[Any] | None = None,
    forward: Forward | None = None,
    draws: int | None = None,
    seed: int = 0,
    higher_is_better: bool | None = None,
    class_dim: int | None = None,
    ignore_index: int = Known.ignore_index,
) -> Evaluated:
    """Measure the decisions of a network by every named metric; nothing is changed.

    Args:
        model: the network; None: `examples` is (outputs, targets), of a black box.
        examples: as `evostep.polish` takes them.
        metric: one more metric, as `evostep.polish` takes it.
        costs: (C, C) table of the metric ``cost``, rows are true classes.
        weights: (n,) what each example counts.
        groups: n names; examples of a group are drawn together.
        forward: ``forward(model, batch) -> (outputs, targets)`` for batches of another form.
        draws: of the bootstrap; None: as in `evostep.polish`.
        seed: of the draws.
        higher_is_better: the direction of a metric that has no name and does not say it.
        class_dim: as in `evostep.polish`.
        ignore_index: marks targets that do not count.

    Returns:
        Metrics and the recall of every class, each with a 95% percentile interval over examples
        (or groups), resampled within their class; Wilson's for a recall (and the smallest) that is
        0 or 1, where no draw differs.

    Raises:
        InputError: as `evostep.polish` does, of examples and of the metric.

    Example:
        >>> outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
        >>> found = evaluate(None, (outputs, torch.tensor([0, 0, 1, 1])))
        >>> found.metrics["accuracy"].value
        0.5
    """
    settings = Settings(
        metric, costs=costs, weights=weights, groups=groups, higher_is_better=higher_is_better
    )
    known = Known(class_dim=class_dim, ignore_index=ignore_index)
    given = given_outputs(model, examples, forward, known)
    problem = settings.problem(given.outputs, given.targets, given.unit, given.weights)
    problem.check_costs(costs)
    named = [*(["cost"] if costs is not None else []), *CONFUSION_METRICS, _OF_PROBABILITIES]
    asked = [parse_objective(name, costs=costs) for name in named]
    if metric is not None:
        asked.insert(0, settings.objective)
    objectives = {one.text: one for one in asked}
    counted = [name for name, one in objectives.items() if not one.of_outputs]
    several, outputs = problem.several, problem.outputs[None]

    def measure(counts: Tensor) -> Tensor:
        found = [objectives[name].value(counts, several=several) for name in counted]
        return torch.cat([torch.stack(found), problem.recalls(counts).movedim(-1, 0)])  # (M, ...)

    decisions = problem.decided(outputs)
    values = measure(problem.counts(decisions))[:, 0]  # (M,)
    drawn = resample(problem, decisions, measure, draws=draws or DRAWS, seed=seed)[:, 0]  # (D, M)

    def estimate(value: Tensor, drawn: Tensor, *kind: bool) -> Estimate:
        # a class without examples, and a draw without one of its groups, have no recall
        there = drawn[drawn.isfinite()]
        found = interval(float(value), there if len(there) else value[None])
        return Estimate(found.value, found.low, found.high, *kind)

    def of(name: str) -> Estimate:
        one = objectives[name]
        if not one.of_outputs:
            m = counted.index(name)
            return estimate(values[m], drawn[:, m], one.higher_is_better, one.fraction)
        value = one.value(one.look(problem, outputs), several=several)[0]
        own = draw_values(problem, one, outputs, draws=draws, seed=seed)[:, 0]
        return estimate(value, own, one.higher_is_better, one.fraction)

    metrics = {name: of(name) for name in objectives}
    recalls = tuple(
        _with_spread(estimate(values[m], drawn[:, m]), n)
        for m, n in enumerate(_sizes(problem), start=len(counted))
    )
    occurring = (one for one in recalls if one.value == one.value)
    worst, smallest = metrics[_WORST], min(occurring, key=lambda one: (one.value, one.high))
    if worst.low == worst.high == smallest.value:
        metrics[_WORST] = replace(worst, low=smallest.low, high=smallest.high)
    return Evaluated(len(problem), problem.group_count, problem.kind, metrics, recalls)


def _with_spread(found: Estimate, n: float) -> Estimate:
    """Return a recall of 0 or 1, of which all draws are the same, with Wilson's interval."""
    if n == 0 or found.low != found.high or found.value not in (0.0, 1.0):
        return found
    low, high = wilson(found.value, n)
    return replace(found, low=low, high=high)


def _sizes(problem: Problem) -> list[float]:
    """Return how many examples (groups of such) a recall is of; weighted ones as Kish counts."""
    n = len(problem)
    weight = torch.ones(n, dtype=torch.float64) if problem.weights is None else problem.weights
    truth = problem.targets
    hits = truth if problem.several else torch.nn.functional.one_hot(truth, problem.classes)
    each = hits.double() * weight[:, None]
    if problem.groups is not None:
        count = problem.group_count or 0
        each = each.new_zeros(count, each.shape[1]).index_add_(0, problem.groups, each)
    effective = each.sum(0).square() / each.square().sum(0)
    return [float(size) for size in effective.nan_to_num(0.0)]
