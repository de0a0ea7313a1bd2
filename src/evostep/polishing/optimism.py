"""How much cross-fitting flatters a procedure that makes classes alike, and the correction.

A search for the worst class's recall makes the recalls of all classes alike on the examples that it
sees, their chance included. Summed over folds, what one fold's chance adds the other folds'
decisions take away: pooled recalls come out more alike than they will be on new examples, and the
smallest of them too large. No resampling of decisions that are held fixed shows that.

Halves of the examples do. A half differs from all examples by as much chance as all examples do
from the population (m = n / 2 drawn without replacement: variance s^2 / n; half-samples: McCarthy
1969, https://doi.org/10.2307/1402116). So the procedure is cross-fitted on halves, and what it
claims there is compared with what its decision does on all examples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evostep.noise import derive_seed, make_generator
from evostep.polishing.folds import assign
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.polishing.search import Search, search
from evostep.polishing.starts import fit_starts, starts_of

HALVES = 20


def halves_of(objective: Objective) -> int:
    """Return how many halves are tried: half of them where each member is measured on its own."""
    return HALVES // 2 if objective.of_outputs else HALVES


def optimism(
    problem: Problem,
    objective: Objective,
    folds: int,
    start: str,
    pull: float | None,
    settings: Search,
    *,
    prior: Tensor | None = None,
    halves: int | None = None,
) -> Tensor:
    """Return by how much the gains over the checkpoint are overstated, (2,): start's, procedure's.

    Args:
        problem: outputs and targets.
        objective: whose value is claimed.
        folds: K of the cross-fitting.
        start: the simple start that was chosen, one of `starts_of`.
        pull: of the search that was chosen; None: the start itself was.
        settings: of the search, with the generations that were chosen.
        prior: as in `evostep.polishing.procedure.cross_fit`.
        halves: how many halves are tried; None: see `halves_of`.
    """
    halves = halves or halves_of(objective)
    several, n = problem.several, len(problem)
    parts, rows = [], []
    for h in range(halves):
        generator = make_generator(derive_seed(settings.seed, "half", h))
        part = assign(problem.strata, 2 * folds, generator, problem.groups)
        parts.append(part)  # the half: parts 0 ... K - 1
        half = part < folds
        rows += [half, *(half & (part != fold) for fold in range(folds))]
    sets = torch.stack(rows).double()
    starts = fit_starts(problem, objective, sets, prior)
    found = [starts[starts_of(problem).index(start)]]
    if pull is None:
        found.append(found[0])
    else:
        found.append(search(problem, objective, sets, starts[-1], (pull,), settings)[-1, :, 0])
    biases = torch.stack(found).view(2, halves, folds + 1, -1)
    zero = problem.unchanged

    def value(bias: Tensor, on: Tensor | None = None) -> Tensor:
        return objective.value(objective.look(problem, problem.adjusted(bias), on), several=several)

    overstated = torch.zeros(2, dtype=torch.float64)
    for h, part in enumerate(parts):
        half = (part < folds).double()
        own = biases[:, h, 1:][:, part.clamp(max=folds - 1)]  # (2, n, C), each by its fold's
        claimed = value(own, half) - value(zero, half)
        true = value(biases[:, h, 0][:, None, :].expand(2, n, -1)) - value(zero)
        overstated += (claimed - true) / halves
    return overstated if objective.higher_is_better else -overstated
