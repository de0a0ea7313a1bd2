"""SNES: evolution strategy that learns a standard deviation for every coordinate.

Separable natural evolution strategy of Schaul, Glasmachers, Schmidhuber 2011, "High Dimensions and
Heavy Tails for Natural Evolution Strategies", https://doi.org/10.1145/2001576.2001692; utilities
and default rates as in Wierstra et al. 2014, "Natural Evolution Strategies",
https://arxiv.org/abs/1106.4487 (algorithm 6, table 1). What differs: members with the same score
share their utility, and sigmas are relative to each tensor's root mean square where
``scale="rms"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.noise import draw
from evostep.strategies.base import NoiseStrategy, State, Step
from evostep.strategies.shaping import log_rank


@dataclass(frozen=True)
class SNES(NoiseStrategy):
    """Follow the natural gradient of a normal distribution with a sigma for every coordinate.

    With utilities u (`evostep.strategies.shaping.log_rank`) and noise eps, for each coordinate:
    ``mean += lr_center * sigma * sum_i u_i eps_i`` and
    ``sigma *= exp(lr_sigma / 2 * sum_i u_i (eps_i^2 - 1))``.

    The learned sigmas are kept as factors of the `sigma` in force, so a parameter group's own sigma
    (and a schedule on it) still rules; 0 means that the group does not evolve. They stay when a
    center is rejected. Memory: one copy of the moving weights between generations, two more (new
    sigmas, stepped center) in a step.

    Args:
        sigma: standard deviation at the start, in units of `scale`.
        population: members in a generation, the parent not counted; at least 2. For d coordinates
            4 + 3 ln d is customary.
        lr_center: step size of the mean; 1 is the paper's.
        lr_sigma: step size of the sigmas; None: (3 + ln d) / (5 sqrt d), d = all that moves.
        scale: ``"rms"`` (relative to each tensor's root mean square) or ``"absolute"``.
        noise: ``"normal"``: the update is that of a normal distribution.

    Raises:
        ValueError: sigma, lr_center or lr_sigma <= 0, a population below 2, an unknown scale,
            another noise.

    Example:
        >>> import torch
        >>> from evostep import Evolution
        >>> w = torch.tensor([3.0, -2.0])
        >>> search = Evolution({"w": w}, SNES(sigma=1.0, population=8, scale="absolute"))
        >>> records = search.evolve(lambda: -float(w.square().sum()), generations=60)
        >>> bool(w.norm() < 0.01)
        True
    """

    population: int = 16
    lr_center: float = 1.0
    lr_sigma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population < 2:
            raise ValueError(f"population must be at least 2, got {self.population}")
        for name, rate in (("lr_center", self.lr_center), ("lr_sigma", self.lr_sigma)):
            if rate is not None and not (rate > 0 and math.isfinite(rate)):
                raise ValueError(f"{name} must be a finite number > 0, got {rate}")
        if self.noise != "normal":
            raise ValueError(
                f"SNES moves a normal distribution, so noise must be 'normal', got {self.noise!r}"
            )

    @property
    def size(self) -> int:
        """The population."""
        return self.population

    def init(self, genome: Genome) -> State:
        """Return ``{"log_sigma": ...}``: ln(sigma_i / sigma), zero, where coordinates move."""
        return {
            "log_sigma": {
                name: torch.zeros_like(center, dtype=_wide(center))
                for name, center in genome.center.items()
                if self.sigma_of(genome, name) != 0
            }
        }

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return member `i`: center + sigma_i * scale * eps_i, coordinate by coordinate."""
        return _Sample(self, genome, state, generation, i, seed)

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the stepped mean and learn the sigmas; neither where all scores are equal."""
        u = log_rank(scores).tolist()
        moving = [name for name in genome.center if self.sigma_of(genome, name) != 0]
        if not moving or not any(u):
            return None, state
        d = sum(genome.sizes[name] for name in moving)
        rate = self.lr_sigma if self.lr_sigma is not None else default_lr_sigma(d)
        mean, log_sigma = dict(genome.center), dict(state["log_sigma"])
        for name in moving:
            center = genome.center[name]
            # the natural gradient, in the noise's own coordinates (algorithm 6, lines 8 and 9)
            of_mean = torch.zeros_like(center, dtype=_wide(center))
            of_sigma = torch.zeros_like(of_mean)
            for i, weight in enumerate(u):
                eps = _noise(genome, seed, generation, i, name)
                of_mean.add_(eps, alpha=weight)
                of_sigma.add_(eps.square_().sub_(1.0), alpha=weight)
            spread = self.deviation(genome, state, name)
            mean[name] = of_mean.mul_(spread).mul_(self.lr_center).add_(center)
            log_sigma[name] = of_sigma.mul_(rate / 2).add_(self._log_sigma(genome, state, name))
        return Step(Tensors(mean)), {**state, "log_sigma": log_sigma}

    def deviation(self, genome: Genome, state: State, name: str) -> Tensor:
        """Return the standard deviation of each coordinate of `name`, in units of the weights."""
        unit = self.sigma_of(genome, name) * self.scale_of(genome, name)
        return self._log_sigma(genome, state, name).exp().mul_(unit)

    def _log_sigma(self, genome: Genome, state: State, name: str) -> Tensor:
        center = genome.center[name]
        learned: Tensor | None = state["log_sigma"].get(name)
        if learned is None:  # did not move when the state was made
            return torch.zeros_like(center, dtype=_wide(center))
        return learned.to(center.device)


def default_lr_sigma(d: int) -> float:
    """Return the rate (3 + ln d) / (5 sqrt d) at which sigmas are learned in `d` coordinates.

    Example:
        >>> round(default_lr_sigma(10), 3)
        0.335
    """
    return (3 + math.log(d)) / (5 * math.sqrt(d))


def _noise(genome: Genome, seed: int, generation: int, i: int, name: str) -> Tensor:
    """Return the noise of member `i`, zero where nothing may move."""
    center = genome.center[name]
    eps = draw("normal", center, seed=seed, generation=generation, member=i, name=name)
    return genome.confine_(name, eps)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@dataclass(frozen=True)
class _Sample:
    """The center plus noise with a standard deviation for every coordinate."""

    strategy: SNES
    genome: Genome
    state: State
    generation: int
    i: int
    seed: int

    def tensor(self, name: str) -> Tensor:
        center = self.genome.center[name]
        if self.strategy.sigma_of(self.genome, name) == 0:
            return center
        eps = _noise(self.genome, self.seed, self.generation, self.i, name)
        return eps.mul_(self.strategy.deviation(self.genome, self.state, name)).add_(center)
