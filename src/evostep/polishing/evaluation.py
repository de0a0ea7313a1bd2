"""Every metric of a network's decisions as they are, with its interval; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evostep.polishing.bootstrap import DRAWS, interval, resample
from evostep.polishing.network import given_outputs
from evostep.polishing.objective import Objective, parse_objective
from evostep.polishing.problem import make_problem
from evostep.scoring.batches import Forward
from evostep.scoring.confusion import CONFUSION_METRICS
from evostep.scoring.outputs import Kind


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
    metric: str | None = None,
    *,
    costs: Any = None,
    weights: Any = None,
    groups: Sequence[Any] | None = None,
    forward: Forward | None = None,
    draws: int = DRAWS,
    seed: int = 0,
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
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        Metrics and the recall of every class, each with a 95% percentile interval over examples
        (or groups), resampled within their class.

    Raises:
        InputError: as `evostep.polish` does, of examples and of the metric.

    Example:
        >>> outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
        >>> found = evaluate(None, (outputs, torch.tensor([0, 0, 1, 1])))
        >>> found.metrics["accuracy"].value
        0.5
    """
    outputs, targets, _ = given_outputs(model, examples, forward)
    problem = make_problem(outputs, targets, weights=weights, groups=groups)
    problem.check_costs(costs)
    named = [metric] if metric else []
    named += ["cost"] if costs is not None else []
    objectives: dict[str, Objective] = {
        name: parse_objective(name, costs=costs)
        for name in dict.fromkeys([*named, *CONFUSION_METRICS])
    }
    several = problem.several

    def measure(counts: Tensor) -> Tensor:
        found = [one.value(counts, several=several) for one in objectives.values()]
        return torch.cat([torch.stack(found), problem.recalls(counts).movedim(-1, 0)])  # (M, ...)

    decisions = problem.decide(torch.zeros(problem.biases))[None]
    values = measure(problem.counts(decisions))[:, 0]  # (M,)
    drawn = resample(problem, decisions, measure, draws=draws, seed=seed)[:, 0]  # (D, M)

    def estimate(m: int, *kind: bool) -> Estimate:
        # a class without examples, and a draw without one of its groups, have no recall
        there = drawn[:, m][drawn[:, m].isfinite()]
        found = interval(float(values[m]), there if len(there) else values[m, None])
        return Estimate(found.value, found.low, found.high, *kind)

    return Evaluated(
        len(problem),
        problem.group_count,
        problem.kind,
        {
            name: estimate(m, one.higher_is_better, one.fraction)
            for m, (name, one) in enumerate(objectives.items())
        },
        tuple(estimate(m) for m in range(len(objectives), len(values))),
    )
