"""OpenAI-ES: an estimate of the gradient of the expected fitness, from scores alone.

Salimans, Ho, Chen, Sidor, Sutskever 2017, "Evolution Strategies as a Scalable Alternative to
Reinforcement Learning", https://arxiv.org/abs/1703.03864; method 2 of "Spartan neural network
training" (2020), whose formula is ``OpenAIES(..., antithetic=False, shaping="z-score",
scale="absolute")``. What differs from the paper's code: members with the same score have the same
utility.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.noise import draw
from evostep.shaping import SHAPINGS, Shaping, shape_scores
from evostep.spaces.base import Coordinates, Genome
from evostep.strategies.base import NoiseStrategy, Perturbed, State, Step


@dataclass(frozen=True)
class OpenAIES(NoiseStrategy):
    """Move the center by ``lr / (n * sigma) * sum_i u_i * eps_i``.

    With `scale="rms"` both sigma and the step are in units of each tensor's root mean square: the
    formula holds for the weights divided by it.

    Args:
        sigma: standard deviation of the noise, in units of `scale`.
        lr: step size, in units of `scale` squared per unit of utility. The step's own length is
            about ``lr / (sigma * sqrt(n))`` times 0.29 (centred ranks) or 1 (z-scores) for each
            weight where the fitness says nothing: keep that below sigma.
        population: members in a generation, the parent not counted; at least 2, and even where
            antithetic.
        antithetic: whether members come in pairs center + noise, center - noise.
        shaping: ``"centered-rank"`` or ``"z-score"``.
        scale: ``"rms"`` (relative to each tensor's root mean square) or ``"absolute"``.
        noise: ``"normal"`` or ``"uniform"`` (on [-1, 1]).

    Raises:
        ValueError: sigma or lr <= 0, a population below 2 or odd with antithetic pairs, an unknown
            shaping, scale or noise.

    Example:
        >>> OpenAIES(sigma=0.02, lr=0.002, population=32).size
        32
    """

    lr: float = 0.002
    population: int = 32
    antithetic: bool = True
    shaping: Shaping = "centered-rank"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr}")
        if self.population < 2:
            raise ValueError(f"population must be at least 2, got {self.population}")
        if self.antithetic and self.population % 2:
            raise ValueError(
                f"population must be even with antithetic pairs, got {self.population}: "
                f"use {self.population + 1}, or antithetic=False"
            )
        if self.shaping not in SHAPINGS:
            raise ValueError(f"shaping must be one of {', '.join(SHAPINGS)}, got {self.shaping!r}")

    @property
    def size(self) -> int:
        """The population."""
        return self.population

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Give member `i`; antithetic members 2k and 2k + 1 share noise k with signs + and -."""
        if not self.antithetic:
            return Perturbed(self, genome, seed, generation, direction=i)
        return Perturbed(self, genome, seed, generation, i // 2, sign=1.0 - 2.0 * (i % 2))

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the step; stay where all utilities are zero or cancel in every pair."""
        u = shape_scores(scores, self.shaping)
        weights = u[0::2] - u[1::2] if self.antithetic else u  # one for each direction
        if not bool((weights != 0).any()):
            return None, state
        return Step(_Ascent(self, genome, seed, generation, tuple(weights.tolist()))), state


@dataclass(frozen=True)
class _Ascent:
    """The stepped center. Noise is drawn again, one direction and one tensor at a time."""

    strategy: OpenAIES
    genome: Genome
    seed: int
    generation: int
    weights: tuple[float, ...]

    def tensor(self, name: str) -> Tensor:
        es, center = self.strategy, self.genome.center[name]
        sigma = es.sigma_of(self.genome, name)
        if sigma == 0:
            return center
        total = torch.zeros_like(center, dtype=torch.promote_types(center.dtype, torch.float32))
        for direction, weight in enumerate(self.weights):
            if weight:
                eps = draw(
                    es.noise,
                    center,
                    seed=self.seed,
                    generation=self.generation,
                    member=direction,
                    name=name,
                )
                total.add_(eps, alpha=weight)
        n = es.population
        return total.mul_(es.scale_of(self.genome, name) * es.lr / (n * sigma)).add_(center)
