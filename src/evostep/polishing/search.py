"""Evolution in the small space of a decision: many searches at once, on outputs computed once.

Separable natural evolution strategy (SNES; Schaul, Glasmachers, Schmidhuber 2011,
https://doi.org/10.1145/2001576.2001692) on the biases, which starts at the tuned logit adjustment
and is pulled back to it: of equal decisions the nearest to the start wins. The mean of the
distribution is proposed, for one member's score on few examples is mostly luck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evostep.noise import derive_seed, make_generator
from evostep.polishing.objective import Objective
from evostep.polishing.problem import SCALE_UNIT, Problem, Seen
from evostep.polishing.starts import subset
from evostep.strategies.shaping import log_rank_rows
from evostep.strategies.snes import default_lr_sigma

Watch = Callable[[int, float], None]
"""Called after each generation: how many decisions it has scored, and by how much its members are
better than the checkpoint in their mean, on the examples of the first search."""


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes:
        population: members of a generation, in mirrored pairs.
        generations: how many at most.
        sigma: standard deviation at the start, in `units`.
        seed: of the noise, which is the same for all searches of a generation.
        watch: who is told of progress.
    """

    population: int = 16
    generations: int = 40
    sigma: float = 0.5
    seed: int = 0
    watch: Watch | None = field(default=None, compare=False, repr=False)


def units(problem: Problem) -> Tensor:
    """Return the unit of the steps of each of a decision's numbers, (P,).

    For a class it is the distance to the decision's border that a quarter of the examples between
    this class and another are within: a bias of this size changes some decisions and leaves most.
    One unit for all would be that of two classes that outputs hardly tell apart, and no other bias
    would get anywhere.

    Example:
        >>> outputs = torch.tensor([[0.0, 0.1, -9.0], [0.1, 0.0, -9.0], [-9.0, 0.0, 2.0]])
        >>> units(Problem(outputs, torch.arange(3), "classes")).round(decimals=1).tolist()
        [0.1, 0.1, 2.0]
    """
    outputs = problem.outputs.double()
    if problem.kind == "classes":
        top = outputs.topk(2, dim=1)
        margin = top.values[:, 0] - top.values[:, 1]
        between = [margin[(top.indices == c).any(1)] for c in range(problem.biases)]
        unit = [_quarter(some if len(some) else margin) for some in between]
    else:
        unit = [_quarter(of_label) for of_label in outputs.abs().T]
    return torch.tensor([*unit, SCALE_UNIT] if problem.scaled else unit, dtype=torch.float64)


def _quarter(distances: Tensor) -> float:
    near = distances.quantile(0.25) if len(distances) < 2**24 else distances.median()
    return float(near) or float(distances.mean()) or 1.0


@torch.no_grad()
def search(
    problem: Problem,
    objective: Objective,
    rows: Tensor,
    start: Tensor,
    pulls: tuple[float, ...],
    settings: Search,
) -> Tensor:
    """Evolve the biases of decisions on several sets of examples, under several pulls.

    Args:
        problem: outputs and targets.
        objective: what is maximised.
        rows: (R, n), how often each example counts in each set.
        start: (R, P) where each begins.
        pulls: weights P of the squared distance to the start, in `units`.
        settings: population, generations, sigma, seed.

    Returns:
        (G + 1, R, P, C): the means of the distributions, the start first.
    """
    unit = units(problem)
    center = start.double()[:, None].repeat(1, len(pulls), 1)  # (R, P, C)
    origin, pull = center.clone(), torch.tensor(pulls, dtype=torch.float64)[:, None]
    log_sigma = torch.zeros_like(center)
    rate, half = default_lr_sigma(len(unit)), settings.population // 2
    sets = [Scorer(problem, objective, row) for row in rows]
    path = [center.clone()]
    watch = settings.watch
    parent = float(sets[0].fitness(problem.unchanged[None])) if watch else 0.0
    for generation in range(settings.generations):
        generator = make_generator(derive_seed(settings.seed, "decision", generation))
        drawn = torch.randn(half, len(unit), generator=generator, dtype=torch.float64)
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
            watch(fitness.numel(), float(fitness[0].mean(-1).max()) - parent)
    return torch.stack(path)


def largest(outputs: Tensor, biases: Tensor) -> Tensor:
    """Return which class is the largest under each of many biases: `Problem.decide`, faster.

    Class by class over blocks that stay in the processor's cache, where an argmax over the last
    dimension is not vectorised. Of equals the first.

    Args:
        outputs: (C, n), contiguous.
        biases: (M, C).

    Returns:
        (M, n) integers.

    Example:
        >>> largest(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        tensor([[1, 0],
                [0, 0]], dtype=torch.int16)
    """
    classes, n = outputs.shape
    dtype = torch.int16 if classes < 2**15 else torch.int64
    parts = []
    for some in biases.to(outputs).split(max(1, _BLOCK // max(n, 1))):
        best = outputs[0] + some[:, 0, None]
        index = torch.zeros_like(best, dtype=dtype)
        other = torch.empty_like(best)
        for c in range(1, classes):
            torch.add(outputs[c], some[:, c, None], out=other)
            index.masked_fill_(other > best, c)
            torch.maximum(best, other, out=best)
        parts.append(index)
    return torch.cat(parts)


_BLOCK = 40_000  # numbers of a block


def undecided(outputs: Tensor, biases: Tensor) -> Tensor:
    """Return the examples about which not all biases decide alike, and maybe more: (n,).

    Within the range of each bias a class is the largest only where its most reaches the most that
    a class has at least. Rounding keeps the order, so no example is missed. In a search, where
    members lie close together, most examples are decided.

    Args:
        outputs: (C, n).
        biases: (M, C).

    Example:
        >>> outputs = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> undecided(outputs, torch.tensor([[0.0, 0.0], [1.5, 0.0]])).tolist()
        [True, False]
    """
    some = biases.to(outputs)
    least = (outputs + some.amin(0)[:, None]).amax(0)
    return (outputs + some.amax(0)[:, None] >= least).sum(0) > 1


class Scorer:
    """Scores decisions about one set of examples.

    Args:
        problem: outputs and targets.
        objective: what is maximised.
        row: (n,) how often each example counts.
    """

    _AT_ONCE = 2**22  # decisions that are counted at once

    def __init__(self, problem: Problem, objective: Objective, row: Tensor) -> None:
        there = row.nonzero().flatten()
        self._row: Tensor | None = None if bool((row[there] == 1).all()) else row[there]
        self._part = subset(problem, there)
        self._by_class = self._part.outputs.T.contiguous()
        self._objective = objective
        self._parent = self._look(problem.unchanged[None])

    def _look(self, biases: Tensor) -> Tensor | Seen:
        """Return what the objective sees of biases, (M, P)."""
        part = self._part
        if self._objective.of_outputs:
            return part.seen(part.adjusted(biases[:, None, :]), self._row)
        if part.kind != "classes":
            return part.counts(part.decide(biases[:, None, :]), self._row)
        torn = undecided(self._by_class, biases)
        return self._counts(biases[:1], ~torn) + self._counts(biases, torn)

    def _counts(self, biases: Tensor, rows: Tensor) -> Tensor:
        """Count the decisions about some of the examples."""
        some = subset(self._part, rows)
        row = None if self._row is None else self._row[rows]
        return some.counts(largest(self._by_class[:, rows], biases), row)

    def fitness(self, members: Tensor) -> Tensor:
        """Return the fitness of biases (..., P): (...)."""
        flat = members.reshape(-1, members.shape[-1])
        step = max(1, self._AT_ONCE // self._by_class.numel() * self._part.biases)
        several = self._part.several
        found = [
            self._objective.fitness(self._look(some), self._parent, several=several)
            for some in flat.split(step)
        ]
        return torch.cat(found).view(members.shape[:-1])


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
