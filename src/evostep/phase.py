"""A phase: the generations of one `evolve`, where they began, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evostep.acceptance import Rule
from evostep.genome.point import Coordinates, Tensors
from evostep.record import Verdict
from evostep.scoring.evaluator import Competition, Evaluator
from evostep.scoring.scores import Outcome, Scores, failure
from evostep.spaces.workspace import Workspace
from evostep.strategies.base import Step, Strategy


@dataclass(frozen=True)
class Decision:
    """What became of the center that one generation proposed.

    Attributes:
        accepted: whether the center moved.
        forwards: sample-forwards of calibration and scoring.
        candidate: how it scored; None where it was not scored.
        judged: whether the rule was asked.
    """

    accepted: bool = False
    forwards: int = 0
    candidate: Outcome | None = None
    judged: bool = False


class Phase:
    """Moves the center within one `evolve`, and takes it back where a rule says so.

    The center is its weights and, where the fitness calibrates, the BatchNorm statistics with
    which it was scored: they are kept, and taken back, together. An interrupt finds either all
    moved or nothing.

    For a rule that judges phases it holds one more copy of the coordinates and of the buffers,
    where the phase began.

    Args:
        rule: of acceptance.
        workspace: with the genome of the space as it was entered.
        evaluator: of the fitness that selects.
        second: of the fitness that decides survival; None: the first does.
        generation: number of the phase's first generation.
        saved: what `state` gave in the middle of this phase, to go on with it.

    Raises:
        ValueError: the weights are not those with which the phase was saved.
    """

    def __init__(
        self,
        rule: Rule,
        workspace: Workspace,
        evaluator: Evaluator,
        second: Evaluator | None,
        generation: int,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self.rule = rule
        self.workspace = workspace
        self.genome = workspace.genome
        self.evaluator = evaluator
        self.second = second
        self.by_phase = rule.every == "phase"
        self.began = generation
        self.moved = False
        self.over = False
        self._start: dict[str, Tensor] = {}
        self._buffers: list[Tensor] = []
        if saved is not None:
            self._resume(saved)
        elif self.by_phase:
            self._start = {name: z.clone() for name, z in self.genome.center.items()}
            self._buffers = evaluator.state.values() if evaluator.state is not None else []

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

    def competition(self, strategy: Strategy) -> Competition | None:
        """Return what the members of a strategy compete for; None: each one's score is of use."""
        if not strategy.selects:
            return None
        judged_by_selection = not self.by_phase and self.second is None
        return Competition(
            strategy.beats_parent or (self.rule.beats_parent and judged_by_selection)
        )

    @property
    def outputs_of_selection(self) -> bool:
        """Whether the rule needs the outputs with which the selection scores the center."""
        return self.rule.needs_outputs and not self.by_phase and self.second is None

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

    def choose_start(self, generation: int) -> tuple[str | None, int]:
        """Begin where the space offers a better start than the weights as they stand.

        Returns:
            The name of the start (``"current"``: none was better), None where the space offers
            none; and the sample-forwards that the choice took.
        """
        starts = self.workspace.space.starts(self.genome)
        if not starts:
            return None, 0
        self.evaluator.begin(generation)
        best, chosen, forwards = self.evaluator().value, "current", self.evaluator.cost
        for name, coordinates in starts.items():
            statistics, outcome, cost = self._try(coordinates, self.evaluator)
            forwards += cost
            if not outcome.failed and not outcome.scores.value <= best:
                self._commit(coordinates, statistics)
                best, chosen, self.moved = outcome.scores.value, name, True
            else:
                self.workspace.restore()
        return chosen, forwards

    def consider(
        self,
        step: Step,
        outcomes: Sequence[Outcome],
        parent: Scores,
        generation: int,
        attempts: int,
    ) -> Decision:
        """Write the proposed center; keep it or write the parent back.

        Args:
            step: what is proposed.
            outcomes: how the members scored.
            parent: scores of the center, with outputs where the rule needs them and there is no
                other fitness to decide.
            generation: its number.
            attempts: how many candidates the run has judged before.
        """
        keep = self.rule.needs_outputs
        forwards = 0
        candidate: Outcome | None = None
        judged = self.rule.needs_scores and not self.by_phase
        best = outcomes[step.scored] if step.scored is not None else None
        if best is not None and best.seen is not None:  # all were dropped: none beats the parent
            return Decision(candidate=best, judged=judged)
        if judged and self.second is not None:
            self.second.begin(generation)
            parent = self.second(keep_outputs=keep)
            forwards = self.second.cost
        if not judged:
            statistics, failed, cost = self._stand(step.center)
            # weights on which the statistics cannot be estimated are not worth going on with
            accepted, candidate = failed is None, failed
        elif self.second is None and step.scored is not None and not keep:
            statistics, failed, cost = self._stand(step.center)
            candidate = failed or outcomes[step.scored]
        else:
            statistics, candidate, cost = self._try(step.center, self.second or self.evaluator)
        forwards += cost
        try:
            if judged:
                assert candidate is not None, "it was scored"
                accepted = not candidate.failed and self.rule(
                    parent, candidate.scores, attempts + 1
                )
            if accepted:
                self._commit(step.center, statistics)
                self.moved = True
        finally:
            self.workspace.restore()
            if statistics is not None:
                self._restore_buffers()
        return Decision(accepted, forwards, candidate, judged)

    def conclude(self, generation: int, attempts: int) -> Verdict | None:
        """Judge where the phase led against where it began, if the rule does; keep it or go back.

        Args:
            generation: number of the phase's last generation, on whose examples both are scored.
            attempts: how many candidates the run has judged before.
        """
        count = generation + 1 - self.began
        if not self.by_phase or not self.moved:
            self.over = True
            if not self.by_phase:
                return None
            return Verdict(self.began, count, None, None, False, None, 0)
        evaluator = self.second or self.evaluator
        evaluator.begin(generation)
        keep = self.rule.needs_outputs
        candidate = evaluator.attempt(calibrate=False, keep_outputs=keep)
        self.workspace.write(Tensors(self._start))
        if self.evaluator.state is not None:
            self.evaluator.state.write(self._buffers)
        parent = evaluator(keep_outputs=keep)
        accepted = not candidate.failed and self.rule(parent, candidate.scores, attempts + 1)
        if accepted:
            self.workspace.restore()
            self._restore_buffers()
        else:
            self.go_back()
        self.over = True
        return Verdict(
            self.began,
            count,
            parent.value,
            candidate.scores.value,
            accepted,
            candidate.error,
            2 * evaluator.cost,
        )

    def cost(self, generation: int) -> int:
        """Sample-forwards of judging the phase after `generation`; 0 for a rule that does not."""
        if not self.by_phase or not self.moved:
            return 0
        evaluator = self.second or self.evaluator
        evaluator.begin(generation)
        return 2 * evaluator.cost

    def close(self) -> None:
        """Leave the weights whole: the center's, or where the phase began if it was not judged."""
        if self.by_phase and not self.over:
            self.go_back()
        self.workspace.restore()
        if self.evaluator.calibrates:
            self._restore_buffers()

    def go_back(self) -> None:
        """Put weights and buffers back where the phase began."""
        try:
            self._go_back()
        except BaseException:  # an interrupt on the way: once more, from the start
            self._go_back()
            raise
        self.over = True

    def _go_back(self) -> None:
        start = Tensors(self._start)
        self.workspace.write(start)
        self.genome.move(start)
        self.workspace.restore()
        if self.evaluator.state is not None:
            self.evaluator.state.write(self._buffers)
        self._hold()

    def _stand(self, coordinates: Coordinates) -> tuple[list[Tensor] | None, Outcome | None, int]:
        """Write weights and estimate their statistics; give these, why not, and the cost."""
        self.workspace.write(coordinates)
        evaluator = self.evaluator
        if not evaluator.calibrates:
            return None, None, 0
        try:
            evaluator.calibrate()
        except Exception as error:
            return None, failure(error), evaluator.calibration_cost
        assert evaluator.state is not None, "a Fitness knows its model"
        return evaluator.state.values(), None, evaluator.calibration_cost

    def _try(
        self, coordinates: Coordinates, evaluator: Evaluator
    ) -> tuple[list[Tensor] | None, Outcome, int]:
        """Write weights and score them; give their statistics, the outcome, and the cost."""
        statistics, failed, cost = self._stand(coordinates)
        outcome = failed or evaluator.attempt(calibrate=False, keep_outputs=self.rule.needs_outputs)
        return statistics, outcome, cost + (0 if failed else evaluator.cost)

    def _commit(self, coordinates: Coordinates, statistics: list[Tensor] | None) -> None:
        """Make what was last written the center, with the statistics that belong to it."""
        try:
            self.workspace.accept(coordinates)
            self._keep(statistics)
        except BaseException:
            if not self.workspace.dirty:  # the weights have moved
                self._keep(statistics)
            raise

    def _keep(self, statistics: list[Tensor] | None) -> None:
        if statistics is not None and self.evaluator.state is not None:
            self.evaluator.state.write(statistics)
            self._hold()

    def _hold(self) -> None:
        for evaluator in (self.evaluator, self.second):
            if evaluator is not None and evaluator.state is not None:
                evaluator.state.hold()

    def _restore_buffers(self) -> None:
        for evaluator in (self.evaluator, self.second):
            if evaluator is not None and evaluator.state is not None:
                evaluator.state.restore()


def fingerprint(tensors: Mapping[str, Tensor]) -> list[int]:
    """Return a checksum of each tensor's bits, which tells other weights from the same.

    Example:
        >>> w = torch.tensor([1.0, 2.0])
        >>> fingerprint({"w": w}) == fingerprint({"w": w.flip(0)})
        False
    """
    return [_checksum(tensor) for tensor in tensors.values()]


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    bits = tensor.detach().contiguous().flatten().view(_INTEGERS[tensor.element_size()]).cpu()
    # sums of products wrap around; odd factors lose no bit
    return int((bits.long() * torch.arange(1, 2 * len(bits), 2)).sum())
