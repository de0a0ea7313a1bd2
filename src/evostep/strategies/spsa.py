"""SPSA: simultaneous perturbation stochastic approximation, a gradient from two scores at a time.

Spall 1992, "Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient
Approximation", https://doi.org/10.1109/9.119632; gains a_k = a / (A + k + 1)^0.602 and
c_k = c / (k + 1)^0.101 as in Spall 1998, https://doi.org/10.1109/7.705889. What differs: several
pairs are averaged (Spall 1992, section III), scores are to be large, and a pair of which one has
failed counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.noise import draw
from evostep.strategies.base import NoiseStrategy, State, Step, check_pairs

ALPHA, GAMMA = 0.602, 0.101  # the least that theory allows, and best in practice: Spall 1998


@dataclass(frozen=True)
class SPSA(NoiseStrategy):
    """Move the center by a_k times the mean over pairs of (y+ - y-) / (2 c_k) Delta.

    Delta has a random sign for each coordinate; y+ and y- are the scores at center + c_k Delta and
    center - c_k Delta. k counts the steps that were told, rejected ones too.

    Args:
        sigma: c, the first half-width of a pair, in units of `scale`.
        lr: a of the step's gain a_k, in units of `scale` squared per unit of the score.
        population: members in a generation, in pairs: even, at least 2.
        stability: A, about a tenth of the steps that are planned.
        scale: ``"rms"`` (relative to each tensor's root mean square) or ``"absolute"``.
        noise: ``"normal"``: signs are those of normal numbers.

    Raises:
        ValueError: sigma or lr <= 0, a population that is odd or below 2, a stability below 0, an
            unknown scale, another noise.

    Example:
        >>> import torch
        >>> from evostep import Always, Evolution
        >>> w = torch.tensor([3.0, -2.0])
        >>> spsa = SPSA(sigma=0.1, lr=0.3, population=2, scale="absolute")
        >>> search = Evolution({"w": w}, spsa, accept=Always())
        >>> _ = search.evolve(lambda: -float(w.square().sum()), generations=100)
        >>> bool(w.norm() < 0.01)
        True
    """

    lr: float = 0.1
    population: int = 2
    stability: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr}")
        check_pairs(self.population)
        if not (self.stability >= 0 and math.isfinite(self.stability)):
            raise ValueError(f"stability must be a finite number >= 0, got {self.stability}")
        if self.noise != "normal":
            raise ValueError(f"SPSA draws signs, so noise must be 'normal', got {self.noise!r}")

    @property
    def size(self) -> int:
        """The population."""
        return self.population

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return member `i`: 2 j is center + c_k Delta_j, 2 j + 1 its mirror image."""
        width = (1 - 2 * (i % 2)) / (state.get("k", 0) + 1) ** GAMMA
        moved = dict(genome.center)
        for name in self._moving(genome):
            reach = width * self.sigma_of(genome, name) * self.scale_of(genome, name)
            delta = self._signs(genome, name, generation, i // 2, seed)
            moved[name] = delta.mul_(reach).add_(genome.center[name])
        return Tensors(moved)

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the step; stay where the two of every pair are equal."""
        k = state.get("k", 0)
        gain = self.lr / (self.stability + k + 1) ** ALPHA
        told = {**state, "k": k + 1}
        pairs = zip(scores[0::2], scores[1::2], strict=True)
        rises = [up - down if math.isfinite(up - down) else 0.0 for up, down in pairs]
        if not any(rises):
            return None, told
        moved = dict(genome.center)
        for name in self._moving(genome):
            c = self.sigma_of(genome, name) / (k + 1) ** GAMMA
            first, *others = (rise / (2 * c * len(rises)) for rise in rises)
            step = self._signs(genome, name, generation, 0, seed).mul_(first)
            for j, weight in enumerate(others, 1):
                step.add_(self._signs(genome, name, generation, j, seed), alpha=weight)
            moved[name] = step.mul_(gain * self.scale_of(genome, name)).add_(genome.center[name])
        return Step(Tensors(moved)), told

    def _moving(self, genome: Genome) -> list[str]:
        return [name for name in genome.center if self.sigma_of(genome, name) != 0]

    def _signs(self, genome: Genome, name: str, generation: int, pair: int, seed: int) -> Tensor:
        """Return Delta of a pair: 1 or -1, and 0 for coordinates that stand still."""
        noise = draw(
            "normal",
            genome.center[name],
            seed=seed,
            generation=generation,
            member=pair,
            name=name,
        )
        return genome.confine_(name, torch.where(noise < 0, -1.0, 1.0).to(noise.dtype))
