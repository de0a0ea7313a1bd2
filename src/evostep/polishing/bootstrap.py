"""The test: examples are resampled within their class, their decisions held fixed.

Each example keeps all its decisions together (of the checkpoint, of the start, of the polished
network), so that a difference is a paired one. Percentile intervals: Efron and Tibshirani 1993, "An
Introduction to the Bootstrap", chapter 13. A whole group is drawn or left, never a part of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.noise import derive_seed, make_generator
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem

DRAWS = 10_000
OUTPUT_DRAWS = 2_000
LEVEL = 0.95
_NOISE = 1e-12  # sums in another order: no change at all


@dataclass(frozen=True)
class Interval:
    """A value with its percentile interval.

    Attributes:
        value: on the examples themselves.
        low: lower end of the two-sided 95% interval.
        high: its upper end.
        p: two-sided, that it is 0: the level at which the interval would end at 0.
    """

    value: float
    low: float
    high: float
    p: float

    @property
    def confirmed(self) -> bool:
        """Whether it lies above zero as a whole."""
        return self.low > 0


def interval(value: float, draws: Tensor, flattery: float = 0.0) -> Interval:
    """Return the percentile interval of draws (D,), and the p that inverts it.

    Args:
        value: on the examples themselves.
        draws: on examples drawn again.
        flattery: what is taken off, as an estimate whose own error no draw shows: so it is taken
            off the value and the end that it flatters, and the other end stays where it is.

    Example:
        >>> interval(2.0, torch.tensor([1.0, 2.0, 3.0] * 100)).confirmed
        True
        >>> interval(2.0, torch.tensor([1.0, 2.0, 3.0] * 100), flattery=1.5)
        Interval(value=0.5, low=-0.5, high=3.0, p=0.6710963455149501)
    """
    tail = (1 - LEVEL) / 2
    draws = draws.double()
    draws = torch.where(draws.abs() < _NOISE, 0.0, draws)
    below, above = draws - max(flattery, 0.0), draws - min(flattery, 0.0)
    low = below.quantile(tail, interpolation="linear")
    high = above.quantile(1 - tail, interpolation="linear")
    not_above, not_below = int((below <= 0).sum()), int((above >= 0).sum())
    p = min(1.0, 2 * (min(not_above, not_below) + 1) / (len(draws) + 1))
    return Interval(value - flattery, float(low), float(high), p)


def wilson(value: float, n: float) -> tuple[float, float]:
    """Return the 95% interval of a share of n, where draws all agree: a share of 0 or 1.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.

    Example:
        >>> [round(end, 3) for end in wilson(0.0, 72)], [round(end, 3) for end in wilson(1.0, 10)]
        ([0.0, 0.051], [0.722, 1.0])
    """
    z2 = 1.959964**2
    middle = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def resample(
    problem: Problem,
    decisions: Tensor,
    measure: Callable[[Tensor], Tensor],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Tensor:
    """Return the metric of several decisions on resampled examples.

    Args:
        problem: targets, weights, groups and strata.
        decisions: (P, n), or (P, n, L) for several labels.
        measure: counts (..., C, C) -> (...), or (M, ...) of several metrics.
        draws: D, how often examples are drawn.
        seed: of the drawing.

    Returns:
        (D, P), or (D, P, M), float64.
    """
    cells = _Cells(problem, decisions)
    generator = make_generator(derive_seed(seed, "bootstrap"))
    at_once = max(1, 2**22 // (cells.size * len(decisions)))
    parts = []
    for start in range(0, draws, at_once):
        drawn = cells.draw(min(at_once, draws - start), generator)  # (d, K)
        parts.append(torch.stack([measure(cells.counts(drawn, p)) for p in range(len(decisions))]))
    return torch.cat(parts, dim=-1).movedim(-1, 0)


def draw_values(
    problem: Problem,
    objective: Objective,
    outputs: Tensor,
    *,
    draws: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the objective of several outputs on resampled examples, (D, P): see `resample`.

    Args:
        problem: targets, weights, groups and strata.
        objective: of counts, or of outputs, which are measured draw by draw.
        outputs: (P, n, C).
        draws: D; None: as `draws_of` says.
        seed: of the drawing.
    """
    draws, several = draws or draws_of(objective), problem.several
    if not objective.of_outputs:
        return resample(
            problem,
            problem.decided(outputs),
            lambda counts: objective.value(counts, several=several),
            draws=draws,
            seed=seed,
        )
    generator = make_generator(derive_seed(seed, "bootstrap"))
    unit_of, strata = _units(problem)
    at_once = max(1, 2**22 // len(strata))
    found = []
    for some in torch.arange(draws).split(at_once):
        rows = torch.empty(len(some), len(problem), dtype=torch.float64)
        for stratum in strata.unique().tolist():
            units = (strata == stratum).nonzero().flatten()
            often = torch.zeros(len(some), len(strata), dtype=torch.float64)
            often[:, units] = _often(len(some), len(units), generator)
            here = strata[unit_of] == stratum
            rows[:, here] = often[:, unit_of[here]]
        found += [objective.value(problem.seen(outputs, row), several=several) for row in rows]
    return torch.stack(found)


def draws_of(objective: Objective) -> int:
    """Return how often examples are drawn: each draw of outputs is measured on its own."""
    return OUTPUT_DRAWS if objective.of_outputs else DRAWS


def _often(draws: int, units: int, generator: torch.Generator) -> Tensor:
    """Return how often each of so many units is drawn, with replacement: (draws, units)."""
    picked = torch.randint(units, (draws, units), generator=generator)
    often = torch.zeros(draws, units, dtype=torch.float64)
    return often.scatter_add_(1, picked, torch.ones_like(picked, dtype=torch.float64))


class _Cells:
    """Examples that are alike in truth and in all decisions, counted together."""

    def __init__(self, problem: Problem, decisions: Tensor) -> None:
        several, classes = problem.several, problem.classes
        labels = problem.biases if several else 1
        truth = problem.targets.reshape(-1, labels)  # (n, L)
        decided = decisions.reshape(len(decisions), -1, labels)  # (P, n, L)
        label = torch.arange(labels).expand_as(truth)
        key = torch.stack([label, truth, *decided], -1).view(-1, 2 + len(decisions))
        cell, of_entry = key.unique(dim=0, return_inverse=True)
        self._label, self._true, self._decided = cell[:, 0], cell[:, 1], cell[:, 2:]
        self._shape = ([labels] if several else []) + [classes, classes]
        self.size = labels * classes**2
        entries = of_entry.view(-1, labels)  # (n, L)
        weights = problem.weights
        self._chain = None
        if problem.groups is None and weights is None and not several:
            # examples of a class are exchangeable: the draws of a class are multinomial
            self._chain = torch.bincount(of_entry, minlength=len(cell)).double()
            return
        unit, strata = _units(problem)
        self._strata = strata  # (U,)
        weight = torch.ones(len(unit), dtype=torch.float64) if weights is None else weights
        place = (unit[:, None] * len(cell) + entries).flatten()
        self._held = torch.bincount(
            place, weight[:, None].expand_as(entries).flatten(), minlength=len(strata) * len(cell)
        ).view(len(strata), len(cell))

    def draw(self, draws: int, generator: torch.Generator) -> Tensor:
        """Return how much of each cell is drawn: (draws, K)."""
        if self._chain is not None:
            return self._multinomial(self._chain, draws, generator)
        drawn = torch.zeros(draws, self._held.shape[1], dtype=torch.float64)
        for stratum in self._strata.unique().tolist():
            units = (self._strata == stratum).nonzero().flatten()
            for some in torch.arange(draws).split(max(1, 2**24 // len(units))):
                drawn[some] += _often(len(some), len(units), generator) @ self._held[units]
        return drawn

    def _multinomial(self, held: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        drawn = torch.zeros(draws, len(held), dtype=torch.float64)
        for stratum in self._true.unique().tolist():
            cells = (self._true == stratum).nonzero().flatten().tolist()
            rest = held[cells].sum()
            left = torch.full((draws,), float(rest), dtype=torch.float64)
            for cell in cells:  # each by a binomial of what the ones before have left
                share = float(held[cell] / rest) if rest > 0 else 1.0
                drawn[:, cell] = torch.binomial(
                    left, torch.full_like(left, min(share, 1.0)), generator=generator
                )
                left, rest = left - drawn[:, cell], rest - held[cell]
        return drawn

    def counts(self, drawn: Tensor, p: int) -> Tensor:
        """Return the counts of decision `p`: (draws, C, C), or (draws, L, C, C)."""
        classes = self._shape[-1]
        place = (self._label * classes + self._true) * classes + self._decided[:, p]
        counts = torch.zeros(len(drawn), self.size, dtype=torch.float64)
        counts.index_add_(1, place, drawn)
        return counts.view(-1, *self._shape)


def _units(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the unit that each example is drawn with (n,), and the stratum of each unit (U,)."""
    strata = problem.strata
    if problem.groups is None:
        return torch.arange(len(problem)), strata
    groups = problem.groups
    n = int(groups.max()) + 1
    low = torch.full((n,), 2**62).scatter_reduce(0, groups, strata, "amin")
    high = torch.full((n,), -1).scatter_reduce(0, groups, strata, "amax")
    # groups of examples of several classes are drawn from among all such
    return groups, torch.where(low == high, low, -1)
