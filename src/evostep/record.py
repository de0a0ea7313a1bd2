"""What a generation did: one record each, in the history and in what `evolve` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from evostep.errors import warn


@dataclass(frozen=True)
class Verdict:
    """The decision of a rule that judges phases.

    Attributes:
        generation: number of the phase's first generation.
        generations: how many the phase had.
        parent: score of where the phase began; None where no generation moved the center, so that
            there was nothing to judge.
        candidate: score of where it led, on the same examples; None where there was nothing to
            judge, NaN where scoring failed.
        accepted: whether the center stays there; otherwise it is back where the phase began.
        error: what the candidate failed by.
        sample_forwards: what judging cost.

    Example:
        >>> import torch
        >>> from evostep import Evolution, Improves, RandomMutation
        >>> w = torch.tensor([3.0])
        >>> search = Evolution({"w": w}, RandomMutation(0.1), accept=Improves(every="phase"))
        >>> records = search.evolve(lambda: -float(w.abs()), generations=3)
        >>> records[-1].verdict.accepted, records[-1].verdict.parent
        (True, -3.0)
    """

    generation: int
    generations: int
    parent: float | None
    candidate: float | None
    accepted: bool
    error: str | None
    sample_forwards: int


@dataclass(frozen=True)
class Record:
    """What one generation did.

    Attributes:
        generation: its number over the whole run, counted from 0.
        scores: of the members, higher is better; NaN for one that failed. Of one that was dropped
            (`engine="racing"`) an estimate.
        parent: score of the center before, on the examples that select, as `scores`.
        candidate: score of the proposed center on the examples on which it was judged, those of
            `accept_on=` where it is given: compare it with `judged_parent`. None where nothing was
            proposed or the rule asks for no score.
        accepted: whether the center moved; where the rule judges phases, whether it moved within
            the phase: `verdict` says whether it stayed.
        failed: members (and a center that was proposed, judged as a phase's, or put back) whose
            fitness raised or was not finite, or whose weights were not.
        error: what the first of them failed by.
        sample_forwards: examples that went forward through the network, parent, members, candidate
            acceptance and what a strategy measures counted (a backward as two more); calls, where
            the fitness is a bare callable.
        seconds: wall-clock time.
        verdict: in the last record of a phase, the decision of a rule that judges phases.
        moved: whether with this record the center has come to stay at other weights than before:
            it was accepted, the phase opened elsewhere, the verdict on the phase was in favour, or
            the center before was put back.
        opened: in the first record of a phase, the start that the space chose: ``"current"`` or
            ``"average"`` for a `Span`; None where there is no choice.
        judged_parent: score of the center before on the examples of `candidate`; None where it was
            not scored there.

    Example:
        >>> import torch
        >>> from evostep import Evolution, RandomMutation
        >>> w = torch.tensor([3.0])
        >>> search = Evolution({"w": w}, RandomMutation(0.1, population=8))
        >>> (record,) = search.evolve(lambda: -float(w.abs()))
        >>> record.parent, len(record.scores), record.accepted, max(record.scores) > record.parent
        (-3.0, 8, True, True)
    """

    generation: int
    scores: list[float]
    parent: float
    candidate: float | None
    accepted: bool
    failed: int
    error: str | None
    sample_forwards: int
    seconds: float
    verdict: Verdict | None = field(default=None, kw_only=True)
    opened: str | None = field(default=None, kw_only=True)
    moved: bool = field(default=False, kw_only=True)
    judged_parent: float | None = field(default=None, kw_only=True)


def warn_of_failures(record: Record) -> None:
    """Warn where no member could be scored, or the center could not."""
    if not math.isfinite(record.parent):
        why = f" ({record.error})" if record.error else ""
        warn(
            f"generation {record.generation}: the fitness of the weights as they stand is "
            f"{record.parent}{why}, and nothing can be told to be better: has training diverged?",
        )
    if record.failed and not any(math.isfinite(score) for score in record.scores):
        warn(
            f"generation {record.generation}: the fitness failed for all {len(record.scores)} "
            f"members, so the weights stay ({record.error})",
        )


STANDS_STILL = "exactly as the weights they come from"
FEW = 4  # members below which it is no wonder that all score the same


def warn_of_no_difference(who: str, value: float, so: str, *, copied: bool) -> None:
    """Warn where whoever was scored has one and the same score, and say what may be the cause.

    Args:
        who: scored so, and the verb.
        value: the score.
        so: what follows.
        copied: whether the fitness may score another model than the one that evolves.
    """
    causes = [
        "does the metric fit outputs and targets",
        *(["does the fitness score the model that evolves, not a copy"] if copied else []),
        "does the forward use the weights that evolve",
        "is sigma large enough for their type",
    ]
    warn(f"{who} {value:g}, {STANDS_STILL}, {so}: {', '.join(causes)}?")
