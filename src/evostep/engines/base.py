"""What engines share: their contract, a workspace that writes members, and a judge that scores.

An engine takes (members, workspace, judge) and gives an outcome for each member. `InPlace` is the
plain reference; every other agrees with it within a stated tolerance, or says that it cannot.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from evostep.engines.guard import ModuleState, seed_everything, version
from evostep.errors import InputError
from evostep.fitness import Examples, Fitness, Pending, Scores
from evostep.members import Mirror, reflect_
from evostep.noise import derive_seed
from evostep.spaces.base import Coordinates, Genome, Space, Tensors


@dataclass(frozen=True)
class Outcome:
    """What scoring one member gave: scores, or why there are none.

    Attributes:
        scores: NaN where there are none.
        error: why there are none.
        seen: on how many examples it was scored; None: on all of the generation's. With fewer,
            its value is an estimate that is below the best member's.
    """

    scores: Scores
    error: str | None = None
    seen: int | None = None

    @property
    def failed(self) -> bool:
        """Whether the fitness raised or was not finite."""
        return self.error is not None


class Workspace:
    """The live tensors that a space moves, and the center from which they are restored.

    Raises:
        ValueError: a tensor made in `torch.inference_mode`, which nothing outside of it may change.
    """

    def __init__(self, space: Space, genome: Genome, live: Mapping[str, Tensor]) -> None:
        for name, tensor in live.items():
            if tensor.is_inference() and not torch.is_inference_mode_enabled():
                raise InputError(
                    f"{name!r} was made in torch.inference_mode() and cannot be changed outside of "
                    "it: make the model elsewhere, or evolve a copy.deepcopy of it"
                )
        self.space = space
        self.genome = genome
        self.live = live
        self._dirty = False
        # what was written last, if nothing has touched it since: its mirror image is made of it
        self._standing: tuple[Coordinates, list[tuple[int, int]]] | None = None

    @torch.no_grad()
    def write(self, coordinates: Coordinates) -> None:
        """Write the weights at `coordinates` into the model, in place, tensor by tensor."""
        self._dirty = True
        torch.clear_autocast_cache()  # keeps weights that it has cast; these change under it
        mirrored = self._stands_opposite(coordinates)
        self._standing = None  # until all of it is written
        for name, tensor in self.live.items():
            if mirrored:
                reflect_(tensor, self.genome.center[name])
            else:
                self.space.write(coordinates, name, tensor)
        self._standing = coordinates, self._versions()

    def touched(self) -> None:
        """Say that the weights may have been written to, behind torch's counters."""
        self._standing = None

    def _stands_opposite(self, coordinates: Coordinates) -> bool:
        """Say whether the weights are, to the bit, the member whose mirror image is asked for."""
        if self._standing is None or not isinstance(coordinates, Mirror):
            return False
        written, versions = self._standing
        opposite = self.space.holds_weights and coordinates.reflects(written)
        return opposite and versions == self._versions()

    def _versions(self) -> list[tuple[int, int]]:
        return [(version(tensor), tensor.data_ptr()) for tensor in self.live.values()]

    def restore(self) -> None:
        """Write the center back, bit for bit, if anything else was written since."""
        if self._dirty:
            self.write(Tensors(self.genome.center))
            self._dirty = False
            self._standing = None

    @property
    def dirty(self) -> bool:
        """Whether the weights may be others than the center's."""
        return self._dirty

    def accept(self, coordinates: Coordinates) -> None:
        """Make the center what was last written, at `coordinates`.

        An interrupt on the way finds the move finished, never half a center.
        """
        settled = self.space.settle(coordinates, self.genome, self.live)
        self._standing = None  # recipes are relative to the center
        try:
            self.genome.move(settled)
        except BaseException:
            self.genome.move(settled)
            raise
        finally:
            self._dirty = False


@dataclass(frozen=True)
class Contest:
    """What members compete for, where only the best of them is of use.

    Attributes:
        beats_parent: whether even the best is of no use if it does not score higher than the
            parent on the same examples.
    """

    beats_parent: bool


class Judge:
    """Scores the model as it stands, the same way for everyone, and leaves no trace.

    Args:
        fitness: a `Fitness`, or any callable that gives a number.
        state: what is put back after each scoring; None where no model is known.
        seed: of the run.

    Attributes:
        examples: on which the generation is scored; None for a bare callable.
        generation: its number.
        contest: what the members compete for; None where each one's score is of use.
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
        self.contest: Contest | None = None
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

    def on(self, examples: Examples) -> Judge:
        """Give a judge of the same generation that scores on these examples."""
        other = copy.copy(self)
        other.examples = examples
        return other


def failure(error: Exception) -> Outcome:
    """Give the outcome of a member whose scoring raised."""
    return Outcome(Scores(math.nan), f"{type(error).__name__}: {error}")


def read(pending: Sequence[Pending | Outcome]) -> list[Outcome]:
    """Read the values of members with one transfer from the device; not finite is a failure."""
    tensors = [p.value for p in pending if isinstance(p, Pending) and isinstance(p.value, Tensor)]
    values = iter(torch.stack([t.double() for t in tensors]).tolist() if tensors else ())
    outcomes = []
    for one in pending:
        if isinstance(one, Outcome):
            outcomes.append(one)
            continue
        value = next(values) if isinstance(one.value, Tensor) else one.value
        if math.isfinite(value):
            outcomes.append(Outcome(one.scores(value)))
        else:
            outcomes.append(Outcome(Scores(math.nan), f"the fitness was {value}"))
    return outcomes


class CannotScore(Exception):  # noqa: N818 - a verdict on a model, not a mistake of the user's
    """An engine has met a model that it cannot take: one line, with the layer and the reason."""


class Engine(ABC):
    """A way of scoring members. Subclasses are frozen dataclasses; what they cache is private.

    Weights, buffers, modes, hooks, requires_grad and random streams are as before afterwards,
    whatever is raised.

    Attributes:
        name: by which a user asks for it.
    """

    name: ClassVar[str]

    def refusal(
        self, members: Sequence[Coordinates], workspace: Workspace, judge: Judge
    ) -> str | None:
        """Say why these members cannot be scored so; None: it can be tried. Cheap."""
        return None

    def pays(self, workspace: Workspace, judge: Judge) -> bool:
        """Say whether it is faster than scoring in place, as far as sizes tell."""
        return True

    def around_parent(self, workspace: Workspace, judge: Judge) -> AbstractContextManager[None]:
        """Give the context within which the parent of the members is scored."""
        return nullcontext()

    @abstractmethod
    def score(
        self, members: Sequence[Coordinates], workspace: Workspace, judge: Judge
    ) -> list[Outcome]:
        """Score members, in their order.

        Raises:
            CannotScore: the model cannot be taken; the weights are the center's.
        """

    def close(self) -> None:
        """Drop what was cached: the phase is over."""
        return None
