"""The evaluator: scores a model as it stands, the same way for everyone, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from evostep.errors import is_out_of_memory
from evostep.interrupts import Undoing
from evostep.noise import derive_seed
from evostep.scoring.accumulators import number
from evostep.scoring.batches import Examples
from evostep.scoring.fitness import Fitness
from evostep.scoring.isolation import ModuleState, seed_everything
from evostep.scoring.scores import Scores, read

_OUT_OF_MEMORY = (
    "evostep: a forward of one batch has no room beside the weights and one copy of them: give "
    "Fitness smaller batches, or keep='host' so that batches wait in host memory"
)


@dataclass(frozen=True)
class Competition:
    """What members compete for, where only the best of them is of use.

    Attributes:
        beats_parent: whether even the best is of no use if it does not score higher than the
            parent on the same examples.
    """

    beats_parent: bool


@dataclass(frozen=True)
class Round:
    """What one generation sets, the same for everybody who is scored in it.

    Attributes:
        seed: of the run.
        generation: its number.
        examples: on which everybody is scored; None for a bare callable.
        competition: what the members compete for; None where each one's score is of use.
        parent: the parent's scores, once it was scored.
    """

    seed: int
    generation: int
    examples: Examples | None = None
    competition: Competition | None = None
    parent: Scores | None = None

    @property
    def cost(self) -> int:
        """Sample-forwards of one scoring; 1 for a bare callable, whose examples are unknown."""
        return len(self.examples) if self.examples is not None else 1

    def seed_of(self, purpose: str) -> int:
        """Return the seed of the random streams for ``"scoring"`` or another purpose."""
        return derive_seed(self.seed, self.generation, purpose)


class Evaluator:
    """Scores the model as it stands, the same way for everyone, and counts what that costs.

    Args:
        fitness: a `Fitness`, or any callable that returns a number.
        state: what is put back after each scoring; None where no model is known.

    Attributes:
        spent: sample-forwards so far, calibration included.
    """

    def __init__(
        self, fitness: Fitness | Callable[[], float], state: ModuleState | None = None
    ) -> None:
        self.fitness = fitness
        self.state = state
        self.spent = 0

    def round(self, seed: int, generation: int, competition: Competition | None = None) -> Round:
        """Return the round of a generation: a pure function of seed and number."""
        examples = None
        if isinstance(self.fitness, Fitness):
            examples = self.fitness.examples(seed, generation)
        return Round(seed, generation, examples, competition)

    @property
    def calibrates(self) -> bool:
        """Whether BatchNorm statistics are estimated again for weights that are proposed."""
        return self._calibration_cost > 0

    @property
    def _calibration_cost(self) -> int:
        if not isinstance(self.fitness, Fitness) or self.fitness.calibration is None:
            return 0
        return self.fitness.calibration.cost(self.fitness.model)

    def calibrate(self, round: Round) -> None:
        """Estimate BatchNorm statistics for the weights as they stand, and leave them so.

        The next scoring puts them back, as does an exception.
        """
        cost = self._calibration_cost
        if not cost:
            return
        assert isinstance(self.fitness, Fitness), "it has a calibration"
        assert self.fitness.calibration is not None, "it costs something"
        self.spent += cost
        seed_everything(round.seed_of("calibration"))
        try:
            self.fitness.calibration(self.fitness.model)
        except BaseException:
            self.restore()
            raise

    @torch.no_grad()
    def score(
        self,
        round: Round,
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Scores:
        """Score the model as it stands; whatever the fitness raises propagates.

        Args:
            round: of the generation.
            keep_outputs: see `Fitness.score`.
            watch: is shown the outputs and the targets of each batch.
        """
        self.spent += round.cost
        with self.unchanged(round):
            if not isinstance(self.fitness, Fitness):
                return Scores(number(self.fitness(), "a fitness must return one number"))
            assert round.examples is not None, "this evaluator's own round has them"
            try:
                return self.fitness.score(round.examples, keep_outputs=keep_outputs, watch=watch)
            except Exception as error:
                if is_out_of_memory(error):
                    error.add_note(_OUT_OF_MEMORY)
                raise

    def attempt(
        self, round: Round, *, calibrate: bool = True, keep_outputs: bool = False
    ) -> Scores:
        """Score weights that are proposed; an error or a value that is not finite is a failure.

        Args:
            round: of the generation.
            calibrate: whether to estimate their BatchNorm statistics first, if the fitness does.
            keep_outputs: see `Fitness.score`.
        """
        return read([self.attempt_later(round, calibrate=calibrate, keep_outputs=keep_outputs)])[0]

    def attempt_later(
        self, round: Round, *, calibrate: bool = True, keep_outputs: bool = False
    ) -> Scores:
        """Score as `attempt` does, without waiting for the device: `read` has to follow."""
        try:
            if calibrate:
                self.calibrate(round)
            return self.score(round, keep_outputs=keep_outputs)
        except Exception as error:
            return Scores.failure(error)

    def score_stacked(self, round: Round, forward: Callable[[Any], Any], n: int) -> list[Scores]:
        """Score n members whose outputs `forward` returns all at once, within `unchanged`."""
        assert isinstance(self.fitness, Fitness), "a bare callable scores one at a time"
        assert round.examples is not None, "a Fitness has examples"
        scores = self.fitness.score_stacked(forward, n, round.examples)
        self.spent += n * round.cost
        return scores

    @contextmanager
    def unchanged(self, round: Round, purpose: str = "scoring") -> Iterator[None]:
        """Seed the random streams as for every scoring of the generation; leave no trace."""
        seed_everything(round.seed_of(purpose))
        with Undoing(self.restore):
            yield

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count nothing of what is scored within: what an engine checks of itself."""
        before = self.spent
        try:
            yield
        finally:
            self.spent = before

    def restore(self) -> None:
        """Put modes, buffers and requires_grad back."""
        if self.state is not None:
            self.state.restore()
