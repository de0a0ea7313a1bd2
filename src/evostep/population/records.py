"""What a population did: one record for each epoch of training and each round of evolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evostep.errors import warn
from evostep.record import Record


@dataclass(frozen=True)
class Descent:
    """What one epoch of gradient descent did to a population.

    Attributes:
        epoch: its number over the whole run, counted from 0.
        alternation: k, the number of the alternation, counted from 1.
        before: fitness of each individual before the epoch.
        tried: fitness of each that trained, after the epoch; NaN for one that failed.
        kept: whether that epoch was kept; else the individual backed off.
        failed: individuals whose fitness raised or was not finite.
        error: what the first of them failed by.
        sample_forwards: 3 for each training example (a backward counts two), 1 for each one scored.
        seconds: wall-clock time.
    """

    epoch: int
    alternation: int
    before: list[float]
    tried: list[float]
    kept: list[bool]
    failed: int
    error: str | None
    sample_forwards: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PopulationRecord(Record):
    """What one evolution round did: a `Record` whose members are the offspring.

    `parent` is the best fitness before, `candidate` the best after, and `accepted` says whether any
    offspring survived; `phase` and `opened` stay None, since no rule judges here.

    Attributes:
        alternation: k, the number of the alternation, counted from 1; sigma was divided by it.
        population: fitness of each individual after the round.
        survivors: numbers of the survivors, the elite first; from the population's size on they
            are offspring.
    """

    alternation: int
    population: list[float]
    survivors: list[int]

    def warn_of_failures(self) -> None:
        """Warn where nobody could breed, or no offspring could be scored."""
        what = None
        if not math.isfinite(self.parent):
            what = "no individual has a finite fitness, so none can breed"
        elif self.failed == len(self.scores):
            what = (
                f"the fitness failed for all {self.failed} offspring, so the population stays "
                f"({self.error})"
            )
        if what is not None:
            warn(f"round {self.generation}: {what}")
