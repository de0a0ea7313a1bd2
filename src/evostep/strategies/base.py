"""What a strategy is: it draws members around a center and proposes where the center goes.

Frozen configuration; whatever changes lives in a state of plain tensors, numbers and dictionaries,
so that it can be saved. A strategy never owns the center: the genome has it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from evostep.noise import NOISE_KINDS, NoiseKind, draw
from evostep.spaces.base import Coordinates, Genome

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
    """Draws members and proposes a step. Subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many members a generation has, the parent not counted."""

    def init(self, genome: Genome) -> State:
        """Give the state before the first generation."""
        return {}

    @abstractmethod
    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Give member `i` of a generation: a recipe, not a model."""

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
        """Say where the center should go.

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


@dataclass(frozen=True)
class NoiseStrategy(Strategy):
    """A strategy whose members are the center plus scaled noise.

    Args:
        sigma: standard deviation of the noise (half the width where it is uniform), in units of
            `scale`.
        scale: ``"rms"``: sigma is relative to each tensor's root mean square (at least 0.01, so
            that zero-initialised biases move). ``"absolute"``: sigma is in units of the weights.
        noise: ``"normal"``, or ``"uniform"`` on [-1, 1].
    """

    sigma: float
    scale: ScaleKind = field(default="rms", kw_only=True)
    noise: NoiseKind = field(default="normal", kw_only=True)

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma must be a finite number > 0, got {self.sigma}")
        if self.scale not in SCALE_KINDS:
            raise ValueError(f"scale must be one of {', '.join(SCALE_KINDS)}, got {self.scale!r}")
        if self.noise not in NOISE_KINDS:
            raise ValueError(f"noise must be one of {', '.join(NOISE_KINDS)}, got {self.noise!r}")

    def sigma_of(self, genome: Genome, name: str) -> float:
        """Give the sigma in force for `name`, in units of the scale."""
        own = genome.sigma[name]
        return self.sigma if own is None else float(own)

    def scale_of(self, genome: Genome, name: str) -> float:
        """Give the unit of sigma for `name`, in units of the weights."""
        return genome.rms[name] if self.scale == "rms" else 1.0


@dataclass(frozen=True)
class Perturbed:
    """Center + sign * sigma * scale * noise, one tensor at a time."""

    strategy: NoiseStrategy
    genome: Genome
    seed: int
    generation: int
    direction: int
    sign: float = 1.0

    def tensor(self, name: str) -> Tensor:
        """Give the perturbed coordinates, float32 or the center's wider type."""
        center = self.genome.center[name]
        sigma = self.strategy.sigma_of(self.genome, name)
        if sigma == 0:
            return center
        spread = self.sign * sigma * self.strategy.scale_of(self.genome, name)
        noise = draw(
            self.strategy.noise,
            center,
            seed=self.seed,
            generation=self.generation,
            member=self.direction,
            name=name,
        )
        return noise.mul_(spread).add_(center)
