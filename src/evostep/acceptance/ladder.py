"""The Ladder: a gain must exceed its own standard error.

Blum & Hardt 2015, "The Ladder: A Reliable Leaderboard for Machine Learning Competitions",
https://arxiv.org/abs/1502.04585 (the parameter-free one, figure 3). What differs: the paper
rounds the score that it releases; nothing is released here, so only the comparison is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from evostep.acceptance.base import Every, Rule, check_every, gives_per_example
from evostep.errors import InputError
from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Scores


@dataclass(frozen=True)
class Ladder(Rule):
    """Accept if the mean gain exceeds std(gains of the examples) / sqrt(n).

    One standard error: a single null candidate passes with probability about 0.16, so this is no
    test at a level, and nothing is spent on earlier attempts. What it bounds is the error of the
    best score so far, over any number of attempts on the same examples: it grows with the
    logarithm of their number. Take `PairedTest` where a false acceptance is dear.

    Args:
        every: ``"phase"`` or ``"generation"``.

    Raises:
        ValueError: when asked about scores without per-example values, or not pairs.

    Example:
        >>> import torch
        >>> parent = Scores(0.25, torch.tensor([0.0, 0.0, 0.0, 1.0]))
        >>> Ladder()(parent, Scores(0.5, torch.tensor([1.0, 0.0, 0.0, 1.0])), attempts=1)
        False
        >>> Ladder()(parent, Scores(0.75, torch.tensor([1.0, 1.0, 0.0, 1.0])), attempts=1)
        True
    """

    every: Every = field(default="phase", kw_only=True)
    needs_fresh = True
    beats_parent = True

    def __post_init__(self) -> None:
        check_every(self.every)

    def check(self, fitness: Fitness | Callable[[], float]) -> None:
        """Raise ValueError for a fitness that has no score for each example."""
        if gives_per_example(fitness) is False:
            raise _nothing_per_example()

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        """Accept if the mean gain exceeds its standard error (never if anything is NaN)."""
        if parent.per_example is None or candidate.per_example is None:
            raise _nothing_per_example()
        gain = candidate.per_example.double() - parent.per_example.double()
        n = len(gain)
        if n < 2:
            return False
        return float(gain.mean()) > float(gain.std()) / math.sqrt(n)


def _nothing_per_example() -> InputError:
    return InputError(
        "Ladder compares the scores of each example, and this fitness has none: use "
        "PairedTest(kind='permutation')"
    )
