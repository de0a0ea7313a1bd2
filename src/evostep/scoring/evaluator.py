"""The evaluator: scores a model as it stands, the same way for everyone, and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from evostep.noise import derive_seed
from evostep.scoring.batches import Examples
from evostep.scoring.fitness import Fitness
from evostep.scoring.isolation import ModuleState, seed_everything
from evostep.scoring.scores import Outcome, Pending, Scores, failure, read


@dataclass(frozen=True)
class Competition:
    """What members compete for, where only the best of them is of use.

    Attributes:
        beats_parent: whether even the best is of no use if it does not score higher than the
            parent on the same examples.
    """

    beats_parent: bool


class Evaluator:
    """Scores the model as it stands, the same way for everyone, and leaves no trace.

    Args:
        fitness: a `Fitness`, or any callable that gives a number.
        state: what is put back after each scoring; None where no model is known.
        seed: of the run.

    Attributes:
        examples: on which the generation is scored; None for a bare callable.
        generation: its number.
        competition: what the members compete for; None where each one's score is of use.
        parent: the parent's scores in this generation, once it was scored.
        watch: is shown the outputs and the targets of each batch while it is set.
    """

    def __init__(
        self, fitness: Fitness | Callable[[], float], state: ModuleState | None, seed: int
    ) -> None:
        self.fitness = fitness
        self.state = state
        self.seed = seed
        self.examples: Examples | None = None
        self.generation = 0
        self.competition: Competition | None = None
        self.parent: Scores | None = None
        self.watch: Callable[[Any, Any], object] | None = None
        self._scoring_seed = self._calibration_seed = 0

    def begin(self, generation: int) -> None:
        """Fix the examples and the random streams with which `generation` is scored."""
        self.generation = generation
        self.parent = None
        self._scoring_seed = derive_seed(self.seed, generation, "scoring")
        self._calibration_seed = derive_seed(self.seed, generation, "calibration")
        if isinstance(self.fitness, Fitness):
            self.examples = self.fitness.examples(self.seed, generation)

    @property
    def cost(self) -> int:
        """Sample-forwards of one scoring; 1 for a bare callable, whose examples are unknown."""
        return len(self.examples) if self.examples is not None else 1

    @property
    def calibrates(self) -> bool:
        """Whether BatchNorm statistics are estimated again for weights that are proposed."""
        return self.calibration_cost > 0

    @property
    def calibration_cost(self) -> int:
        """Sample-forwards of one estimate; 0 where there is none."""
        if not isinstance(self.fitness, Fitness) or self.fitness.calibration is None:
            return 0
        return self.fitness.calibration.cost(self.fitness.model)

    def calibrate(self) -> None:
        """Estimate BatchNorm statistics for the weights as they stand, and leave them so.

        The next scoring puts them back, as does an exception.
        """
        if not self.calibrates:
            return
        assert isinstance(self.fitness, Fitness), "it has a calibration"
        assert self.fitness.calibration is not None, "it costs something"
        seed_everything(self._calibration_seed)
        try:
            self.fitness.calibration(self.fitness.model)
        except BaseException:
            if self.state is not None:
                self.state.restore()
            raise

    def __call__(self, *, keep_outputs: bool = False) -> Scores:
        """Score the model as it stands; whatever the fitness raises propagates."""
        return self._score(keep_outputs).scores()

    @torch.no_grad()
    def _score(self, keep_outputs: bool = False) -> Pending:
        with self.unchanged():
            if isinstance(self.fitness, Fitness):
                assert self.examples is not None, "begin() comes first"
                return self.fitness.score_later(
                    self.examples, keep_outputs=keep_outputs, watch=self.watch
                )
            return Pending(float(self.fitness()))

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Seed the random streams as for every scoring of the generation; leave no trace."""
        seed_everything(self._scoring_seed)
        try:
            yield
        finally:
            if self.state is not None:
                self.state.restore()

    def attempt(self, *, calibrate: bool = True, keep_outputs: bool = False) -> Outcome:
        """Score weights that are proposed; an error or a value that is not finite is a failure.

        Args:
            calibrate: whether to estimate their BatchNorm statistics first, if the fitness does.
            keep_outputs: see `Fitness.score`.
        """
        return read([self.attempt_later(calibrate=calibrate, keep_outputs=keep_outputs)])[0]

    def attempt_later(
        self, *, calibrate: bool = True, keep_outputs: bool = False
    ) -> Pending | Outcome:
        """Score as `attempt` does, without waiting for the device: see `read`."""
        try:
            if calibrate:
                self.calibrate()
            return self._score(keep_outputs)
        except Exception as error:
            return failure(error)

    def on(self, examples: Examples) -> Evaluator:
        """Return an evaluator of the same generation that scores on these examples."""
        other = copy.copy(self)
        other.examples = examples
        return other
