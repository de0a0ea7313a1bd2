"""Evolution in the small space of a decision: many searches at once, on outputs computed once.

Separable natural evolution strategy (SNES; Schaul, Glasmachers, Schmidhuber 2011,
https://doi.org/10.1145/2001576.2001692) on the biases, which starts at the tuned logit adjustment
and is pulled back to it: of equal decisions the nearest to the start wins. The mean of the
distribution is proposed, for one member's score on few examples is mostly luck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.noise import derive_seed, make_generator
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.polishing.starts import subset
from evostep.strategies.shaping import log_rank_rows
from evostep.strategies.snes import default_lr_sigma

Watch = Callable[[int, int, float], None]
"""Called after each generation: how many are done, of how many, and by how much its members are
better than the checkpoint in their mean, on the examples that they are searched on."""


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes:
        population: members of a generation, in mirrored pairs.
        generations: how many at most.
        sigma: standard deviation at the start, in units of `spread`.
        seed: of the noise, which is the same for all searches of a generation.
    """

    population: int = 16
    generations: int = 40
    sigma: float = 0.5
    seed: int = 0


def spread(problem: Problem) -> float:
    """Return the distance to the decision's border that a quarter of the examples is within.

    It is the unit of steps: a bias of this size changes some decisions and leaves most.
    """
    outputs = problem.outputs.double()
    if problem.kind == "classes":
        top = outputs.topk(2, dim=1).values
        margin = top[:, 0] - top[:, 1]
    else:
        margin = outputs.abs().flatten()
    unit = float(margin.quantile(0.25)) if len(margin) < 2**24 else float(margin.median())
    return unit if unit > 0 else float(margin.mean()) or 1.0


@torch.no_grad()
def search(
    problem: Problem,
    objective: Objective,
    rows: Tensor,
    start: Tensor,
    pulls: tuple[float, ...],
    settings: Search,
    *,
    watch: Watch | None = None,
) -> Tensor:
    """Evolve the biases of decisions on several sets of examples, under several pulls.

    Args:
        problem: outputs and targets.
        objective: what is maximised.
        rows: (R, n), how often each example counts in each set.
        start: (R, C) where each begins.
        pulls: weights P of the squared distance to the start, in units of `spread`.
        settings: population, generations, sigma, seed.
        watch: called after each generation, with the gain on the first set.

    Returns:
        (G + 1, R, P, C): the means of the distributions, the start first.
    """
    unit = spread(problem)
    center = start.double()[:, None].repeat(1, len(pulls), 1)  # (R, P, C)
    origin, pull = center.clone(), torch.tensor(pulls, dtype=torch.float64)[:, None]
    log_sigma = torch.zeros_like(center)
    rate, half = default_lr_sigma(problem.biases), settings.population // 2
    sets = [_Set(problem, objective, row) for row in rows]
    path = [center.clone()]
    parent = float(sets[0].fitness(torch.zeros(1, problem.biases))) if watch else 0.0
    for generation in range(settings.generations):
        generator = make_generator(derive_seed(settings.seed, "decision", generation))
        drawn = torch.randn(half, problem.biases, generator=generator, dtype=torch.float64)
        eps = torch.cat([drawn, -drawn])  # (M, C)
        sigma = log_sigma.exp() * (settings.sigma * unit)
        members = center[:, :, None] + sigma[:, :, None] * eps  # (R, P, M, C)
        away = ((members - origin[:, :, None]) / unit).square().sum(-1)  # (R, P, M)
        fitness = torch.stack([s.fitness(m) for s, m in zip(sets, members, strict=True)])
        utility = log_rank_rows(fitness - pull * away)
        center = center + sigma * torch.einsum("rpm,mc->rpc", utility, eps)
        log_sigma += rate / 2 * torch.einsum("rpm,mc->rpc", utility, eps.square() - 1)
        path.append(center.clone())
        if watch:
            gain = float(fitness[0].mean(-1).max()) - parent
            watch(generation + 1, settings.generations, gain)
    return torch.stack(path)


class _Set:
    """One set of examples, on which decisions are scored."""

    _AT_ONCE = 2**23  # numbers in flight

    def __init__(self, problem: Problem, objective: Objective, row: Tensor) -> None:
        there = row.nonzero().flatten()
        self._row = row[there]
        self._part = subset(problem, there)
        self._objective = objective
        self._parent = self._counts(torch.zeros(1, problem.biases))[0]

    def _counts(self, biases: Tensor) -> Tensor:
        part = self._part
        rows = None if bool((self._row == 1).all()) else self._row
        step = max(1, self._AT_ONCE // part.outputs.numel())
        return torch.cat(
            [part.counts(part.decide(some[:, None, :]), rows) for some in biases.split(step)]
        )

    def fitness(self, members: Tensor) -> Tensor:
        """Return the fitness of biases (..., C): (...)."""
        counts = self._counts(members.reshape(-1, members.shape[-1]))
        fitness = self._objective.fitness(counts, self._parent, several=self._part.several)
        return fitness.view(members.shape[:-1])


def center_on_plateau(problem: Problem, bias: Tensor, rows: Tensor | None = None) -> Tensor:
    """Move each bias to the middle of the interval in which no decision on the examples changes.

    Args:
        problem: outputs.
        bias: (C,).
        rows: (n,), the examples that count; None: all.

    Returns:
        (C,) biases with the same decisions. A bias that could go on for ever on one side stays.
    """
    outputs = problem.outputs.double()
    outputs = outputs if rows is None else outputs[rows > 0]
    bias = bias.double().clone()
    for c in range(problem.biases):
        if problem.kind == "classes":
            others = outputs + bias
            others[:, c] = -torch.inf
            borders = others.amax(1) - outputs[:, c]  # the class is decided above
        else:
            borders = -outputs[:, c]
        below, above = borders[borders < bias[c]], borders[borders >= bias[c]]
        if len(below) and len(above):
            bias[c] = (below.max() + above.min()) / 2
    return bias
