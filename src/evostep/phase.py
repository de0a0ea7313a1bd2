"""A phase: the generations of one `evolve`, where they began, and what becomes of them.

`Phase.generation` is one generation, line by line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from evostep.acceptance import Rule
from evostep.engines.base import Session
from evostep.errors import warn
from evostep.genome.point import Coordinates
from evostep.interrupts import finish
from evostep.record import FEW, Record, Verdict, warn_of_no_difference
from evostep.scoring.center import Center, fingerprint
from evostep.scoring.evaluator import Competition, Evaluator, Round
from evostep.scoring.fitness import Fitness, at_its_best
from evostep.scoring.probe import Probe
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace
from evostep.strategies.base import State, Step, Strategy


@dataclass(frozen=True)
class _Decision:
    """What became of the center that one generation proposed.

    Attributes:
        accepted: whether the center moves.
        candidate: how it scored; None where it was not scored.
        center: the proposed one, as it can be moved to; None where nothing is proposed.
        statistics: of BatchNorm layers that belong to it, where they are estimated.
        judged: whether the rule had to judge it.
        parent: the center before on the examples of `candidate`; None where it was not scored.
    """

    accepted: bool = False
    candidate: Scores | None = None
    center: Coordinates | None = None
    statistics: list[Tensor] | None = None
    judged: bool = False
    parent: Scores | None = None


_ROUNDING = 1e-6  # of one engine against another, relative


class Phase:
    """Moves the center within one `evolve`, and takes it back where a rule says so.

    It holds one more copy of the coordinates and of the buffers: for a rule that judges phases of
    where the phase began; for one that asks for no score, from one generation to the next, of the
    center before, which takes the new one's place where that one's score is not finite.

    Args:
        strategy: draws members and proposes a center.
        rule: of acceptance.
        workspace: with the genome of the space as it was entered.
        evaluator: of the fitness that selects.
        second: of the fitness that decides survival; None: the first does.
        session: of the engine that scores the members.
        seed: of the run.
        generation: number of the phase's first generation.
        attempts: how many candidates the run has judged before.
        saved: what `state` returned in the middle of this phase, to go on with it.
        former: what `former` returned in a phase that was not ended.

    Attributes:
        attempts: how many candidates the run has judged so far.

    Raises:
        ValueError: the weights are not those with which the phase was saved.
    """

    def __init__(
        self,
        strategy: Strategy,
        rule: Rule,
        workspace: Workspace,
        evaluator: Evaluator,
        second: Evaluator | None,
        session: Session[Any],
        *,
        seed: int,
        generation: int,
        attempts: int,
        saved: Mapping[str, Any] | None = None,
        former: Mapping[str, Any] | None = None,
    ) -> None:
        self.strategy, self.rule = strategy, rule
        self.workspace, self.genome = workspace, workspace.genome
        self.center = Center(workspace, evaluator, second)
        self.evaluator, self.second, self.session = evaluator, second, session
        self.seed, self.attempts = seed, attempts
        session.expect(strategy.size_for(self.genome))
        self.by_phase = rule.every == "phase"
        self.began = generation
        self.moved = False
        self.over = False
        self._told_flat = False
        self._opened: str | None = None  # told in the first record
        self._told = 0  # of the sample-forwards spent
        self._start: dict[str, Tensor] = {}
        self._buffers: list[Tensor] = []
        # where it was before it opened elsewhere, until a record tells of that
        self._untold: tuple[dict[str, Tensor], list[Tensor]] | None = None
        # the center before, where nobody asked how the one that took its place scores
        self._former: tuple[dict[str, Tensor], list[Tensor]] | None = None
        if saved is not None:
            self._resume(saved)
        elif self.by_phase:
            self._start, self._buffers = self.center.copy()
        if former is not None:
            self._go_on_after(former)

    # One generation.

    def generation(
        self,
        number: int,
        state: State,
        book: Callable[[Record, State], object],
        *,
        more: bool = False,
    ) -> Record:
        """Draw members, score them, move the center where they point, keep it or go back.

        Args:
            number: of the generation.
            state: the strategy's, from the generation before (not changed).
            book: takes down what was done, and the strategy's new state, in one with the center's
                move: an interrupt finds both or neither. It may be called twice, to the same end.
            more: whether another generation follows in this phase, which will see how the center
                scores.

        Returns:
            What was done.
        """
        clock = time.perf_counter()
        strategy, genome, seed = self.strategy, self.genome, self.seed
        round = self.evaluator.round(seed, number, self._competition)  # the same for everyone
        before = state
        members, parent, state = self._draw(round, before)
        if broken := self._go_back(round, parent):
            members, parent, state = self._draw(round, before)
        former = self.center.copy() if more and self._asks_nobody else None
        scores = self.session.score(replace(round, parent=parent), members)
        values = [one.value for one in scores]
        step, state = strategy.tell(genome, state, number, values, parent.value, seed)
        if self._nothing_differs(parent, scores) and not self._asks:
            step = None  # the center would only drift
        decision = self._consider(step, round, parent, scores) if step else _Decision()
        record = self._record(number, parent, scores, decision, clock, broken)
        attempts = self.attempts + decision.judged

        def settle() -> None:
            if decision.accepted:
                assert decision.center is not None, "it was proposed"
                self.center.commit(decision.center, decision.statistics)
                self.moved = True
            self.attempts, self._untold = attempts, None
            self._former = former if decision.accepted and math.isfinite(parent.value) else None
            book(record, state)

        finish(settle)
        self.center.restore(buffers=decision.statistics is not None)
        return record

    def _draw(self, round: Round, state: State) -> tuple[list[Coordinates], Scores, State]:
        """Return the members of a generation, their parent's scores, and the state they have."""
        strategy, genome, number, seed = self.strategy, self.genome, round.generation, self.seed
        probe = Probe(self.workspace, self.evaluator, round) if strategy.needs_probe else None
        state = strategy.prepare(genome, state, number, seed, probe)
        size = strategy.size_for(genome)
        members = [strategy.member(genome, state, number, i, seed) for i in range(size)]
        parent = self.session.parent(round, members, keep_outputs=self._keeps_outputs)
        return members, parent, state

    def _go_back(self, round: Round, parent: Scores) -> Scores | None:
        """Put a center that nobody asked for its score back, if that is not finite.

        As the one before it has none on these examples either, nothing tells them apart: it stays.

        Returns:
            What became of it, as a failure; None where it stays.
        """
        former = self._former
        if former is None or math.isfinite(parent.value):
            return None
        self.center.write(*former)
        if self.evaluator.attempt(round, calibrate=False).failed:
            self.center.restore()
            return None
        self.center.restore()
        self._untold = self.center.copy()
        finish(partial(self.center.move, *former))
        failure = f"the fitness of the center was {parent.value}: the one before was put back"
        warn(f"generation {round.generation}: {failure}")
        return Scores.failure(failure)

    def _nothing_differs(self, parent: Scores, scores: Sequence[Scores]) -> bool:
        """Return whether all members score as the parent does; warn once in a phase.

        An engine's rounding may set all of them apart from a parent that was scored in place.
        """
        values = {one.value for one in scores}
        alike = len(values) == 1 and all(one.seen is None for one in scores)
        rounding = _ROUNDING if len(scores) > 1 else 0.0
        if not alike or not math.isclose(values.pop(), parent.value, rel_tol=rounding):
            return False
        if len(scores) >= FEW and not self._told_flat and self._expects_differences(parent):
            self._told_flat = True
            warn_of_no_difference(
                f"all {len(scores)} members score",
                parent.value,
                "so the weights stay",
                copied=not isinstance(self.evaluator.fitness, Fitness),
            )
        return True

    def _expects_differences(self, parent: Scores) -> bool:
        """Return whether something moves, and can be better."""
        moves = any(sigma != 0 for sigma in self.genome.sigma.values())
        return moves and not at_its_best(self.evaluator.fitness, parent.value)

    @property
    def _competition(self) -> Competition | None:
        """What members compete for; None: each one's score is of use."""
        if not self.strategy.selects:
            return None
        selection_decides = not self.by_phase and self.second is None
        beats_parent = self.strategy.beats_parent or (self.rule.beats_parent and selection_decides)
        return Competition(beats_parent)

    @property
    def _asks(self) -> bool:
        """Whether the rule judges each generation."""
        return self.rule.needs_scores and not self.by_phase

    @property
    def _asks_nobody(self) -> bool:
        """Whether a center is taken that nothing has scored, and nothing will judge."""
        return not self.rule.needs_scores and not self.by_phase

    @property
    def _keeps_outputs(self) -> bool:
        return self.rule.needs_outputs and not self.by_phase and self.second is None

    def _consider(
        self, step: Step, round: Round, parent: Scores, scores: Sequence[Scores]
    ) -> _Decision:
        """Write the proposed center, and judge it; there it stands."""
        keep = self.rule.needs_outputs
        asked = self._asks
        best = scores[step.scored] if step.scored is not None else None
        if best is not None and best.seen is not None:  # all were dropped: none beats the parent
            return _Decision(candidate=best, judged=asked, parent=parent)
        if asked and self.second is not None:
            round = self.second.round(self.seed, round.generation)
            parent = self.second.score(round, keep_outputs=keep)
        statistics, candidate = self.center.try_out(step.center, round)
        lost = self.center.lost()
        if candidate is None and (asked or lost is not None):
            if lost is not None:
                candidate = Scores.failure(f"{lost!r} would be NaN or infinite")
            elif self.second is None and best is not None and not keep:
                candidate = best
            else:
                judge = self.second or self.evaluator
                candidate = judge.attempt(round, calibrate=False, keep_outputs=keep)
        # weights on which statistics cannot be estimated are not worth going on with
        accepted = candidate is None or not candidate.failed
        if asked:
            assert candidate is not None, "it was scored"
            accepted = accepted and self.rule(parent, candidate, self.attempts + 1)
            accepted = self.session.all_agree(accepted)
        center = self.workspace.settle(step.center) if accepted else None
        known = candidate is not None and (asked or self.second is None)
        return _Decision(accepted, candidate, center, statistics, asked, parent if known else None)

    def _record(
        self,
        number: int,
        parent: Scores,
        scores: Sequence[Scores],
        decision: _Decision,
        clock: float,
        broken: Scores | None,
    ) -> Record:
        candidate = decision.candidate
        errors = [s.error for s in (broken, *scores, candidate) if s is not None and s.failed]
        opened, self._opened = self._opened, None
        elsewhere = broken is not None or opened not in (None, "current")
        stays = not self.by_phase and (decision.accepted or elsewhere)
        return Record(
            generation=number,
            scores=[one.value for one in scores],
            parent=parent.value,
            candidate=candidate.value if candidate is not None else None,
            accepted=decision.accepted,
            failed=len(errors),
            error=parent.error or (errors[0] if errors else None),
            sample_forwards=self._spent(),
            seconds=time.perf_counter() - clock,
            opened=opened,
            moved=stays,
            judged_parent=decision.parent.value if decision.parent is not None else None,
        )

    def _spent(self) -> int:
        """Return the sample-forwards since it was last asked."""
        spent = self.evaluator.spent + (self.second.spent if self.second is not None else 0)
        spent, self._told = spent - self._told, spent
        return spent

    # Where a phase begins, and how it ends.

    def choose_start(self, number: int) -> None:
        """Begin where the space offers a better start than the weights as they stand."""
        starts = self.workspace.space.starts(self.genome)
        if not starts:
            return
        self._untold = self.center.copy()
        round = self.evaluator.round(self.seed, number)
        best, self._opened = self.evaluator.score(round).value, "current"
        for name, coordinates in starts.items():
            statistics, failed = self.center.try_out(coordinates, round)
            scores = failed or self.evaluator.attempt(round, calibrate=False)
            if self.session.all_agree(not scores.failed and not scores.value <= best):
                settled = self.workspace.settle(coordinates)
                finish(partial(self._begin_at, settled, statistics))
                best, self._opened = scores.value, name
            else:
                self.center.restore(buffers=False)

    def _begin_at(self, settled: Coordinates, statistics: list[Tensor] | None) -> None:
        self.center.commit(settled, statistics)
        self.moved = True

    def conclude(self, record: Record, book: Callable[[Record], object]) -> None:
        """Judge where the phase led against where it began, if the rule does; keep it or go back.

        Args:
            record: of the phase's last generation, on whose examples both are scored.
            book: takes down the record with the verdict: see `generation`.
        """
        self._judge(record, book)
        self.session.done()

    def _judge(self, record: Record, book: Callable[[Record], object]) -> None:
        count = record.generation + 1 - self.began
        if not self.by_phase:
            self.over = True
            return
        if not self.moved:
            nothing = Verdict(self.began, count, None, None, False, None, 0)
            book(replace(record, verdict=nothing))
            self.over = True
            return
        judge = self.second or self.evaluator
        round = judge.round(self.seed, record.generation)
        keep = self.rule.needs_outputs
        candidate = judge.attempt(round, calibrate=False, keep_outputs=keep)
        self.center.write(self._start, self._buffers)
        parent = judge.score(round, keep_outputs=keep)
        accepted = not candidate.failed and self.rule(parent, candidate, self.attempts + 1)
        accepted = self.session.all_agree(accepted)
        verdict = Verdict(
            generation=self.began,
            generations=count,
            parent=parent.value,
            candidate=candidate.value,
            accepted=accepted,
            error=candidate.error,
            sample_forwards=self._spent(),
        )
        record = replace(
            record,
            verdict=verdict,
            sample_forwards=record.sample_forwards + verdict.sample_forwards,
            moved=accepted,
            failed=record.failed + candidate.failed,
            error=record.error or candidate.error,
        )
        attempts = self.attempts + 1

        def settle() -> None:
            if accepted:
                self.center.restore()
            else:
                self.center.move(self._start, self._buffers)
            self.over, self.attempts = True, attempts
            book(record)

        finish(settle)

    def cost_of_verdict(self, number: int) -> int:
        """Return what judging the phase after generation `number` takes; 0 if nothing is judged."""
        if not self.by_phase or not self.moved:
            return 0
        return 2 * (self.second or self.evaluator).round(self.seed, number).cost

    def close(self) -> None:
        """Leave the weights whole: the center's, or where the phase began if it was not judged."""
        if not self.over:
            self.session.leave()
        if self.by_phase and not self.over:
            self.center.move(self._start, self._buffers)
            self.over = True
        elif self._untold is not None:
            self.center.move(*self._untold)
            self._untold = None
        self.center.restore(buffers=self.evaluator.calibrates)
        self.center.derive_weights()
        self.session.close()

    # Saving.

    def state(self) -> dict[str, Any] | None:
        """Return what a later run needs to go on in the middle of this phase; None: nothing."""
        space = self.workspace.space.state(self.genome)
        if self.over or (space is None and not self.by_phase):
            return None
        return {
            "generation": self.began,
            "moved": self.moved,
            "weights": fingerprint(self.workspace.live),
            "space": space,
            "start": dict(self._start),
            "buffers": list(self._buffers),
        }

    def _resume(self, saved: Mapping[str, Any]) -> None:
        if saved["weights"] != fingerprint(self.workspace.live):
            raise ValueError(
                "the state was saved in the middle of a phase, at other weights than the model "
                "has: load the weights saved with it, or call Evolution.reset()"
            )
        center = self.genome.center
        if self.by_phase != bool(saved["start"]) or (saved["start"].keys() - center.keys()):
            raise ValueError(
                "the state was saved in the middle of a phase under another rule of acceptance: "
                "go on with the same one, or call Evolution.reset()"
            )
        self.began, self.moved = int(saved["generation"]), bool(saved["moved"])
        self._start = {name: z.to(center[name].device) for name, z in saved["start"].items()}
        self._buffers = list(saved["buffers"])

    def former(self) -> dict[str, Any] | None:
        """Return the center that the next generation may go back to; None: there is none."""
        if self.over or self._former is None:
            return None
        coordinates, buffers = self._former
        weights = fingerprint(self.workspace.live)
        return {"weights": weights, "center": coordinates, "buffers": buffers}

    def _go_on_after(self, saved: Mapping[str, Any]) -> None:
        """Take up what `former` returned, if the weights are still those that came after it."""
        center = self.genome.center
        fits = self._asks_nobody and saved["center"].keys() == center.keys()
        if fits and saved["weights"] == fingerprint(self.workspace.live):
            there = {name: z.to(center[name].device) for name, z in saved["center"].items()}
            self._former = there, list(saved["buffers"])
