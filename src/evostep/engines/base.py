"""What engines share: a workspace that writes members into the model, and a judge that scores it.

An engine is a function (members, workspace, judge) -> outcomes. `inplace` is the plain reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.engines.guard import ModuleState, seed_everything
from evostep.fitness import Examples, Fitness, Scores
from evostep.noise import derive_seed
from evostep.spaces.base import Coordinates, Genome, Space, Tensors


@dataclass(frozen=True)
class Outcome:
    """What scoring one member gave: scores, or why there are none."""

    scores: Scores
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the fitness raised or was not finite."""
        return self.error is not None


class Workspace:
    """The live tensors that a space moves, and the center from which they are restored."""

    def __init__(self, space: Space, genome: Genome, live: Mapping[str, Tensor]) -> None:
        self.space = space
        self.genome = genome
        self.live = live
        self._dirty = False

    @torch.no_grad()
    def write(self, coordinates: Coordinates) -> None:
        """Write the weights at `coordinates` into the model, in place, tensor by tensor."""
        self._dirty = True
        for name, tensor in self.live.items():
            tensor.copy_(self.space.decode(coordinates, name))

    def restore(self) -> None:
        """Write the center back, bit for bit, if anything else was written since."""
        if self._dirty:
            self.write(Tensors(self.genome.center))
            self._dirty = False

    @property
    def dirty(self) -> bool:
        """Whether the weights may be others than the center's."""
        return self._dirty

    def accept(self, coordinates: Coordinates) -> None:
        """Make the center what was last written, at `coordinates`.

        An interrupt on the way finds the move finished, never half a center.
        """
        settled = self.space.settle(coordinates, self.genome, self.live)
        try:
            self.genome.move(settled)
        except BaseException:
            self.genome.move(settled)
            raise
        finally:
            self._dirty = False


class Judge:
    """Scores the model as it stands, the same way for everyone, and leaves no trace.

    Args:
        fitness: a `Fitness`, or any callable that gives a number.
        state: what is put back after each scoring; None where no model is known.
        seed: of the run.
    """

    def __init__(
        self, fitness: Fitness | Callable[[], float], state: ModuleState | None, seed: int
    ) -> None:
        self.fitness = fitness
        self.state = state
        self.seed = seed
        self.examples: Examples | None = None
        self._scoring_seed = self._calibration_seed = 0

    def begin(self, generation: int) -> None:
        """Fix the examples and the random streams with which `generation` is scored."""
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

    @torch.no_grad()
    def __call__(self, *, keep_outputs: bool = False) -> Scores:
        """Score the model as it stands; whatever the fitness raises propagates."""
        seed_everything(self._scoring_seed)
        try:
            if isinstance(self.fitness, Fitness):
                assert self.examples is not None, "begin() comes first"
                return self.fitness.score(self.examples, keep_outputs=keep_outputs)
            return Scores(float(self.fitness()))
        finally:
            if self.state is not None:
                self.state.restore()

    def attempt(self, *, calibrate: bool = True, keep_outputs: bool = False) -> Outcome:
        """Score weights that are proposed; an error or a value that is not finite is a failure.

        Args:
            calibrate: whether to estimate their BatchNorm statistics first, if the fitness does.
            keep_outputs: see `Fitness.score`.
        """
        try:
            if calibrate:
                self.calibrate()
            scores = self(keep_outputs=keep_outputs)
        except Exception as error:
            return Outcome(Scores(math.nan), f"{type(error).__name__}: {error}")
        if not math.isfinite(scores.value):
            return Outcome(Scores(math.nan), f"the fitness was {scores.value}")
        return Outcome(scores)


Engine = Callable[[Sequence[Coordinates], Workspace, Judge], list[Outcome]]
