"""What a strategy is: it draws members around a center and proposes where the center goes.

Frozen configuration; whatever changes lives in a state of plain tensors, numbers and dictionaries,
so that it can be saved. A strategy never owns the center: the genome has it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from evostep.genome.members import Perturbed, Spread
from evostep.genome.point import Coordinates, Genome
from evostep.noise import LowRank, Noise, check_noise

if TYPE_CHECKING:
    from evostep.scoring.probe import Probe

ScaleKind = Literal["rms", "absolute"]
SCALE_KINDS: tuple[str, ...] = get_args(ScaleKind)

State = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """Where a strategy proposes to move the center.

    Attributes:
        center: the proposed coordinates, tensor by tensor on demand.
        scored: the index of the member that stands exactly there, whose score then is the
            candidate's; None where nobody stood there yet.
    """

    center: Coordinates
    scored: int | None = None


class Strategy(ABC):
    """Draws members and proposes a step. Subclasses are frozen dataclasses.

    Attributes:
        needs_guides: whether it follows `Genome.guides`; nothing is gathered otherwise.
        selects: whether it proposes the best member, whose score then is known, and learns nothing
            from the others.
        beats_parent: whether it proposes only what scores higher than the parent.

    Example:
        >>> class Walk(NoiseStrategy):  # goes where its one member is, whatever it scores
        ...     size = 1
        ...
        ...     def member(self, genome, state, generation, i, seed):
        ...         return self.perturbed(genome, seed, generation, i)
        ...
        ...     def tell(self, genome, state, generation, scores, parent, seed):
        ...         return Step(self.member(genome, state, generation, 0, seed), scored=0), state
        >>> Walk(sigma=0.1).size
        1
    """

    needs_guides: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    beats_parent: ClassVar[bool] = False

    @property
    @abstractmethod
    def size(self) -> int:
        """How many members a generation has, the parent not counted."""

    def size_for(self, genome: Genome) -> int:
        """Return the size where it may depend on how many coordinates move; `size` otherwise."""
        return self.size

    def init(self, genome: Genome) -> State:
        """Return the state before the first generation."""
        return {}

    @property
    def needs_probe(self) -> bool:
        """Whether `prepare` measures the network, which takes a `Fitness`."""
        return False

    def prepare(
        self, genome: Genome, state: State, generation: int, seed: int, probe: Probe | None
    ) -> State:
        """Find out what all members of a generation need, before they are drawn.

        Args:
            genome: with the center around which members will be drawn.
            state: from the generation before (not changed).
            generation: counted from 0.
            seed: of the run.
            probe: what may be measured, where `needs_probe`; it counts what that costs.

        Returns:
            The state for `member` and `tell` of this generation; `tell` drops from it what was
            found out, so that it is not saved.
        """
        return state

    def measuring_cost(self, examples: int, outputs: int) -> int:
        """Return the most sample-forwards that `prepare` takes in one generation.

        Args:
            examples: of the fitness in one generation.
            outputs: of the network for each example.
        """
        return 0

    @abstractmethod
    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return member `i` of a generation: a recipe, not a model."""

    @abstractmethod
    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Return where the center should go.

        Args:
            genome: with the center around which the members were drawn.
            state: from the generation before (not changed; a new one is returned).
            generation: counted from 0.
            scores: of the members, higher is better; NaN for one that failed.
            parent: score of the center on the same examples.
            seed: of the run.

        Returns:
            The proposed step, or None to stay; and the new state.
        """


def check_pairs(population: int) -> None:
    """Refuse a population that does not come in pairs.

    Raises:
        ValueError: it is odd, or below 2; an even one is named.
    """
    if population < 2 or population % 2:
        raise ValueError(
            f"population must be even and at least 2, got {population}: use "
            f"{max(2, population + population % 2)}, for members come in pairs"
        )


@dataclass(frozen=True)
class NoiseStrategy(Strategy):
    """A strategy whose members are the center plus scaled noise.

    Args:
        sigma: standard deviation of the noise (half the width where it is uniform), in units of
            `scale`.
        scale: ``"rms"``: sigma is relative to each tensor's root mean square (at least 0.01, so
            that zero-initialised biases move). ``"absolute"``: sigma is in units of the weights.
        noise: ``"normal"``, ``"uniform"`` on [-1, 1], or ``LowRank(rank)``.
    """

    sigma: float
    scale: ScaleKind = field(default="rms", kw_only=True)
    noise: Noise = field(default="normal", kw_only=True)

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma must be a finite number > 0, got {self.sigma}")
        self.check_scale()
        check_noise(self.noise)

    def check_scale(self) -> None:
        """Raise ValueError for a scale that the strategy does not know."""
        if self.scale not in SCALE_KINDS:
            raise ValueError(f"scale must be one of {', '.join(SCALE_KINDS)}, got {self.scale!r}")

    def init(self, genome: Genome) -> State:
        """Return the state before the first generation; refuse a rank above a layer's."""
        if isinstance(self.noise, LowRank):
            for name, center in genome.center.items():
                if self.sigma_of(genome, name) != 0:
                    self.noise.check(name, center.shape)
        return {}

    @property
    def spread(self) -> Spread:
        """How far members reach."""
        return Spread(self.sigma, self.scale == "rms")

    def perturbed(self, genome: Genome, seed: int, generation: int, direction: int) -> Perturbed:
        """Return the center plus the noise of a direction."""
        return Perturbed(genome, self.noise, self.spread, seed, generation, direction)

    def sigma_of(self, genome: Genome, name: str) -> float:
        """Return the sigma in force for `name`, in units of the scale."""
        return self.spread.sigma_of(genome, name)

    def scale_of(self, genome: Genome, name: str) -> float:
        """Return the unit of sigma for `name`, in units of the weights."""
        return self.spread.scale_of(genome, name)
