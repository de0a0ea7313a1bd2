"""Budgets: a number of evaluations, or a time that one probe turns into such a number."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from evostep.errors import InputError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smh])")
_LONGEST = 30 * 24 * 3600.0

Budget = int | str | None
"""A number of decisions or sample-forwards; a time such as ``"90s"``, ``"2m"``, ``"1.5h"``."""


@dataclass(frozen=True)
class Cost:
    """What polishing takes.

    Attributes:
        once: whatever the number of generations.
        generation: one more generation of everything.
    """

    once: float
    generation: float


def parse_budget(budget: Budget) -> int | float | None:
    """Return a number of evaluations (an integer), seconds (a float), or None.

    Raises:
        InputError: neither; nothing, or more than 30 days.

    Example:
        >>> parse_budget("2m"), parse_budget("5_000"), parse_budget(500)
        (120.0, 5000, 500)
    """
    wrong = InputError(
        f"budget must be a number of evaluations, or a time such as 90s, 2m or 1h, got {budget!r}"
    )
    if budget is None:
        return None
    if not isinstance(budget, str):
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise wrong
        return budget
    text = budget.strip().lower()
    if re.fullmatch(r"-?[0-9]{1,18}(?:_[0-9]{1,18}){0,6}", text):
        return int(text)
    found = _TIME.fullmatch(text)
    if not found:
        raise wrong
    seconds = float(found[1]) * _SECONDS[found[2]]
    if not 0 < seconds <= _LONGEST:
        raise InputError(f"budget must be a time above 0 and of at most 30 days, got {budget!r}")
    return seconds


def generations_for(evaluations: int, cost: Cost) -> int:
    """Return how many generations so many evaluations allow, at least one.

    Raises:
        InputError: they do not allow one.
    """
    generations = int((evaluations - cost.once) // cost.generation)
    if generations < 1:
        raise InputError(
            f"budget must be at least {round(cost.once + cost.generation)}, one generation of all "
            f"searches, got {evaluations}"
        )
    return generations


def evaluations_in(seconds: float, evaluations: Cost, time: Cost) -> int:
    """Return how many evaluations a time is enough for, at least those of one generation.

    Args:
        seconds: what there is.
        evaluations: what is counted.
        time: what it takes, in seconds.

    Example:
        >>> evaluations_in(10.0, Cost(100, 50), Cost(1.0, 2.0))
        300
    """
    generations = max(1, int((seconds - time.once) // time.generation))
    return round(evaluations.once + generations * evaluations.generation)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that work takes, at least a microsecond."""
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-6)
