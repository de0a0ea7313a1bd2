"""When is a new center truly better than its parent?

A rule compares the parent's scores with the candidate's and decides which one lives. The
strategy proposes, the rule disposes: `RandomMutation` proposes its best child, `Improves` makes
that (1 + lambda) with survival, `Always` (1, lambda).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from evostep.fitness import Scores


class Rule(ABC):
    """Decides whether a candidate replaces its parent.

    Attributes:
        every: ``"generation"`` (asked after each generation) or ``"phase"``.
        needs_scores: whether the candidate has to be scored before the rule can decide.
    """

    every: ClassVar[Literal["generation", "phase"]] = "generation"
    needs_scores: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        """Say whether `candidate` replaces `parent`.

        Args:
            parent: scores of the center as it was.
            candidate: scores of the proposed center, on the same examples.
            attempts: how many candidates this run has judged, this one included.
        """


@dataclass(frozen=True)
class Always(Rule):
    """Accept every proposed center, unscored: (1, lambda), and the article's OpenAI-ES.

    Example:
        >>> from evostep.fitness import Scores
        >>> Always()(Scores(0.9), Scores(0.1), attempts=1)
        True
    """

    needs_scores: ClassVar[bool] = False

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        """Accept."""
        return True


@dataclass(frozen=True)
class Improves(Rule):
    """Accept a candidate that scores strictly higher than its parent; a tie keeps the parent.

    On the examples by which the candidate was selected a gain can be luck: the best of K mutations
    that change d of the predictions and improve nothing is expected to gain about
    sqrt(d / n) * sqrt(2 ln K) on n examples. Pass `accept_on` to `evolve` to decide on examples
    that selection has not seen.

    Example:
        >>> from evostep.fitness import Scores
        >>> Improves()(Scores(0.5), Scores(0.5), attempts=1)
        False
    """

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        """Accept if the candidate's value is strictly higher (never if it is NaN)."""
        return candidate.value > parent.value
