"""What a decision can change of a metric: found by trying, for a metric may be any function."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.noise import derive_seed, make_generator
from evostep.polishing.objective import CANNOT_CHANGE, Objective
from evostep.polishing.problem import Problem
from evostep.polishing.search import units
from evostep.scoring.outputs import OutputMetric

TRIES = 16
_SAME = 1e-9  # relative: sums of the same numbers in another order


def with_scale(problem: Problem, objective: Objective) -> Problem:
    """Return the problem with a scale beside the biases, where a metric changes under one.

    A metric that reads probabilities does; where decisions alone count a scale is as good as
    another distance from zero of the biases, and is left out.
    """
    scales = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)[:, None, None]
    scaled = any(
        not _alike(_values(problem, metric, scales * problem.outputs.double()))
        for metric in objective.metrics
        if isinstance(metric, OutputMetric)
    )
    return replace(problem, scaled=scaled)


def check_reach(problem: Problem, objective: Objective) -> None:
    """Raise an InputError for a metric of outputs that has one value under random decisions."""
    wide = replace(problem, outputs=problem.outputs.double())  # else large biases round ties
    generator = make_generator(derive_seed(0, "reach"))
    unit = units(problem)
    drawn = torch.randn(TRIES, 1, len(unit), generator=generator, dtype=torch.float64) * unit
    outputs = torch.cat([wide.outputs[None], wide.adjusted(drawn)])
    for metric in objective.metrics:
        if isinstance(metric, OutputMetric) and _alike(_values(problem, metric, outputs)):
            raise InputError(
                f"{metric.summary} has the same value under {TRIES} random decisions: it "
                f"{CANNOT_CHANGE}"
            )


def _values(problem: Problem, metric: OutputMetric, outputs: Tensor) -> list[float]:
    return problem.seen(outputs).measure(metric).tolist()


def _alike(values: list[float]) -> bool:
    return all(math.isclose(value, values[0], rel_tol=_SAME, abs_tol=_SAME) for value in values)
