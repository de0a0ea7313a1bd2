"""Random mutation: copies of the network with noise on their weights, the best one proposed.

Method 1 of "Spartan neural network training" (2020). With `Improves` as the acceptance rule it is
the (1 + lambda) evolution strategy: the parent survives unless a child is strictly better. The
article scores children only; here the parent is scored again on the same examples as its children.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evostep.spaces.base import Coordinates, Genome
from evostep.strategies.base import NoiseStrategy, Perturbed, State, Step


@dataclass(frozen=True)
class RandomMutation(NoiseStrategy):
    """Propose the best of `children` noisy copies of the center.

    Args:
        sigma: standard deviation of the mutations, in units of `scale`.
        children: copies in a generation, at least 1.
        scale: ``"rms"`` (relative to each tensor's root mean square) or ``"absolute"``.
        noise: ``"normal"`` or ``"uniform"`` (on [-1, 1]).

    Raises:
        ValueError: sigma <= 0, fewer than one child, an unknown scale or noise.

    Example:
        >>> RandomMutation(sigma=0.02, children=16).size
        16
    """

    children: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.children < 1:
            raise ValueError(f"children must be at least 1, got {self.children}")

    @property
    def size(self) -> int:
        """The number of children."""
        return self.children

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Give child `i`: center + sigma * scale * eps_i."""
        return Perturbed(self, genome, seed, generation, direction=i)

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the child with the highest score, the first among equals."""
        finite = [i for i, score in enumerate(scores) if math.isfinite(score)]
        if not finite:
            return None, state
        best = max(finite, key=lambda i: scores[i])
        return Step(self.member(genome, state, generation, best, seed), scored=best), state
