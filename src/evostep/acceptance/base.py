"""What a rule of acceptance is, and the two plain ones.

A rule compares the parent's scores with the candidate's and decides which one lives. The
strategy proposes, the rule disposes: `RandomMutation` proposes its best child, `Improves` makes
that (1 + lambda) with survival, `Always` (1, lambda).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Scores

Every = Literal["generation", "phase"]


class Rule(ABC):
    """Decides whether a candidate replaces its parent.

    Attributes:
        every: ``"generation"``: asked after each. ``"phase"``: asked once, at the end of `evolve`,
            where the center stands then against where the phase began; within the phase every
            proposal moves the center.
        needs_scores: whether the candidate has to be scored before the rule can decide.
        needs_outputs: whether it needs the outputs of all examples, too (`Scores.outputs`).
        beats_parent: whether a candidate that does not score higher than the parent is rejected,
            whatever else.
        needs_fresh: whether what it promises holds only on examples that selection has not seen.

    Example:
        >>> class ByAMargin(Rule):
        ...     def __call__(self, parent, candidate, attempts):
        ...         return candidate.value > parent.value + 0.01
        >>> ByAMargin()(Scores(0.90), Scores(0.92), attempts=1)
        True
    """

    every: Every = "generation"
    needs_scores: bool = True
    needs_outputs: bool = False
    beats_parent: bool = False
    needs_fresh: bool = False

    @abstractmethod
    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        """Return whether `candidate` replaces `parent`.

        Args:
            parent: scores of the center as it was.
            candidate: scores of the proposed center, on the same examples.
            attempts: how many candidates this run has judged, this one included.
        """

    def check(self, fitness: Fitness | Callable[[], float]) -> None:
        """Raise ValueError where this fitness cannot give what the rule needs, as far as known."""
        return None


def check_every(every: str) -> None:
    """Raise ValueError for what is neither a generation nor a phase."""
    if every not in get_args(Every):
        raise ValueError(f"every must be 'generation' or 'phase', got {every!r}")


def gives_per_example(fitness: Fitness | Callable[[], float]) -> bool | None:
    """Return whether a fitness scores each example; None where only scoring will tell."""
    return fitness.gives_per_example if isinstance(fitness, Fitness) else False


@dataclass(frozen=True)
class Always(Rule):
    """Accept every proposed center, unscored: (1, lambda), and the article's OpenAI-ES.

    One whose score turns out not to be finite in the next generation of the same `evolve` is put
    back then; for that a copy of the center before is held.

    Example:
        >>> from evostep.scoring.fitness import Scores
        >>> Always()(Scores(0.9), Scores(0.1), attempts=1)
        True
    """

    needs_scores = False

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

    Args:
        every: ``"generation"``, or ``"phase"`` to judge where a whole `evolve` led.

    Example:
        >>> from evostep.scoring.fitness import Scores
        >>> Improves()(Scores(0.5), Scores(0.5), attempts=1)
        False
    """

    every: Every = field(default="generation", kw_only=True)
    beats_parent = True

    def __post_init__(self) -> None:
        check_every(self.every)

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        """Accept if the candidate's value is strictly higher (never if it is NaN)."""
        return candidate.value > parent.value
