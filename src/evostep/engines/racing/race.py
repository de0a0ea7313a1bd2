"""A race of members: who is still in it, on what they were scored, and what is told of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evostep.engines.base import CannotScore
from evostep.engines.racing.bounds import Strata, behind, falling, share_out
from evostep.scoring.scores import Scores, read

# (who, numbers of examples) -> their outcomes, and the numbers in the order of per_example
Score = Callable[[Sequence[int], Tensor], tuple[list[Scores], Tensor]]


class Race:
    """Scores members on more and more of the examples, and drops those that cannot win.

    All decisions are made in host memory, in float64: one transfer for each look.

    Args:
        parent: its scores of all n examples, `per_example` included.
        strata: of the examples, none of them seen.
        score: scores members on some of the examples.
        beats_parent: whether a member that scores no higher than the parent is of no use.
        within_one: whether an example's score lies in [0, 1].
        z: how sure to be that a member has lost, see `evostep.engines.racing.bounds.behind`.
    """

    def __init__(
        self,
        parent: Scores,
        strata: Strata,
        score: Score,
        *,
        beats_parent: bool,
        within_one: bool,
        z: float,
    ) -> None:
        assert parent.per_example is not None, "members are compared with it"
        self.parent = parent
        self.strata = strata
        self.beats_parent = beats_parent
        self.limit = 1.0 if within_one else math.inf
        self.z = z
        self._score = score
        self._of_parent = parent.per_example.cpu()  # (n,)
        self._of_members = self._of_parent[:0]  # (members, n), NaN where not seen
        self._alive: list[int] = []
        self._gone: dict[int, Scores] = {}  # that were dropped or failed
        self._outrun: list[int] = []  # that were dropped because a member was better

    def run(self, members: int, stops: Sequence[int]) -> list[Scores]:
        """Race so many members; return their scores.

        Args:
            members: how many.
            stops: after how many examples to look who has lost, rising; at last n.
        """
        n = len(self._of_parent)
        self._of_members = self._of_parent.new_full((members, n), math.nan)
        self._alive = list(range(members))
        usual = torch.ones(len(self.strata.sizes), dtype=torch.float64)  # nothing is known yet
        for stop in stops:
            count = stop - len(self.strata.rows)
            self._see(self.strata.draw(share_out(count, self.strata.left, usual)))
            if not self._alive or stop == n:
                break
            if len(self._alive) > 1 or self.beats_parent:
                usual = self._drop()
        return self._outcomes(members)

    def _see(self, numbers: Tensor) -> None:
        """Score those that are alive on these examples; those that fail are out."""
        outcomes, order = self._score(self._alive, numbers)
        seen = len(self.strata.rows)
        parts: list[Tensor] = []
        alive: list[int] = []
        for i, outcome in zip(self._alive, outcomes, strict=True):
            scores = outcome.per_example
            if outcome.failed:
                self._gone[i] = Scores.failure(outcome.error or "", seen=seen)
            elif scores is None or len(scores) != len(order):
                raise CannotScore(f"the metric has no score for each of {len(order)} examples")
            else:
                parts.append(scores)
                alive.append(i)
        if alive:
            places = torch.tensor(alive)[:, None]
            self._of_members[places, order] = torch.stack(parts).cpu().double()
        if len(alive) < len(self._alive) and self._outrun:
            alive = self._readmit(alive)
        self._alive = alive

    def _readmit(self, alive: list[int]) -> list[int]:
        """Let those race on that lost to a member: it may be the one that has failed since."""
        back, self._outrun = self._outrun, []
        outcomes, order = self._score(back, self.strata.rows)
        for i, outcome in zip(back, outcomes, strict=True):
            del self._gone[i]
            if outcome.failed or outcome.per_example is None:
                error = outcome.error or "no score for each example"
                self._gone[i] = Scores.failure(error, seen=len(self.strata.rows))
            else:
                self._of_members[i, order] = outcome.per_example.cpu().double()
                alive.append(i)
        return sorted(alive)

    def _drop(self) -> Tensor:
        """Drop those that have lost; return the mean square of a difference in each group."""
        rows, strata = self.strata.rows, self.strata
        scores = self._of_members[self._alive][:, rows]  # (alive, seen)
        gains = scores - self._of_parent[rows]
        seen = strata.seen.clamp(min=1) * len(gains)
        usual = falling(strata.sums(gains.square()).sum(0) / seen, strata.seen + 1e-9)

        lead = scores - scores[strata.total(scores).argmax()]
        # two members differ where either differs from the parent
        outrun = behind(lead, strata, 2 * usual, self.z, self.limit)
        useless = torch.zeros_like(outrun)
        if self.beats_parent:
            useless = behind(gains, strata, usual, self.z, self.limit)
            if self.limit == 1:  # mistakes of the parent that are left to mend are too few
                mistakes = 1 - self._of_parent
                useless |= -gains.sum(1) >= mistakes.sum() - mistakes[rows].sum()

        estimates = self.parent.value + strata.total(gains) / len(self._of_parent)
        alive = []
        for k, i in enumerate(self._alive):
            if not (outrun[k] or useless[k]):
                alive.append(i)
                continue
            self._gone[i] = Scores(float(estimates[k]), seen=len(rows))
            if not useless[k]:
                self._outrun.append(i)
        self._alive = alive
        return usual

    def _outcomes(self, members: int) -> list[Scores]:
        """Return what was scored in full, in the order of the examples, and what was not."""
        assert self.parent.per_example is not None
        device = self.parent.per_example.device
        whole = [self._of_members[i].to(device) for i in self._alive]
        read_now = read([Scores(values.mean(), values) for values in whole])
        found = {**self._gone, **dict(zip(self._alive, read_now, strict=True))}
        best = max((o.value for o in read_now if not o.failed), default=self.parent.value)
        below = math.nextafter(best, -math.inf)
        for i, outcome in self._gone.items():
            if not outcome.failed and outcome.value > below:
                found[i] = Scores(below, seen=outcome.seen)
        return [found[i] for i in range(members)]
