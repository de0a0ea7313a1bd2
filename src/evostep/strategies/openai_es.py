"""OpenAI-ES: an estimate of the gradient of the expected fitness, from scores alone.

Salimans, Ho, Chen, Sidor, Sutskever 2017, "Evolution Strategies as a Scalable Alternative to
Reinforcement Learning", https://arxiv.org/abs/1703.03864; method 2 of "Spartan neural network
training" (2020), whose formula is ``OpenAIES(..., antithetic=False, shaping="z-score",
scale="absolute")``. What differs from the paper's code: members with the same score have the same
utility. The step may go through a torch optimizer, as the paper's code does through Adam.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError, reason, unknown_name
from evostep.genome.members import Mirror
from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.noise import weighted_sum
from evostep.strategies.base import NoiseStrategy, State, Step
from evostep.strategies.shaping import SHAPINGS, Shaping, shape_scores

OptimizerFactory = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class OpenAIES(NoiseStrategy):
    """Move the center by ``lr / (n * sigma) * sum_i u_i * eps_i``.

    With `scale="rms"` both sigma and the step are in units of each tensor's root mean square: the
    formula holds for the weights divided by it.

    With an `optimizer` the estimate ``g = 1 / (n * sigma) * sum_i u_i * eps_i`` takes the place of
    minus the gradient, and the optimizer steps, with `lr` as its learning rate: ``"SGD"`` gives
    the formula above. Each tensor has an optimizer of its own, whose state (moments, counts) is
    saved, goes on over generations and phases, and stays when a center is rejected; equal scores
    all over are no step for it. Memory: without an optimizer the step is built one tensor at a
    time; with one it holds the stepped center, and the optimizer's tensors (Adam: two per weight)
    before and after the step; only the latter stay.

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
        noise: ``"normal"``, ``"uniform"`` (on [-1, 1]) or ``LowRank(rank)``.
        optimizer: None; the name of a class in `torch.optim`, such as ``"Adam"``; or what makes an
            optimizer from (parameters, lr=...), such as a class or a `functools.partial` of one.

    Raises:
        ValueError: sigma or lr <= 0, a population below 2 or odd with antithetic pairs, an unknown
            shaping, scale, noise or optimizer; an optimizer that has an lr already, or that cannot
            step from gradients alone (LBFGS); later one that does not take a tensor of this shape.

    Example:
        >>> OpenAIES(sigma=0.02, lr=0.002, population=32).size
        32
        >>> import functools
        >>> adam = functools.partial(torch.optim.Adam, betas=(0.9, 0.99))
        >>> strategy = OpenAIES(sigma=0.02, lr=0.001, optimizer=adam)
    """

    lr: float = 0.002
    population: int = 32
    antithetic: bool = True
    shaping: Shaping = "centered-rank"
    optimizer: str | OptimizerFactory | None = field(default=None, kw_only=True)

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
        if self.optimizer is not None:
            _try_step(self._make_optimizer(nn.Parameter(torch.ones(2, 2))), self.optimizer)

    def init(self, genome: Genome) -> State:
        """Return the state before the first generation; refuse what the optimizer does not take."""
        state = super().init(genome)
        if self.optimizer is not None:
            for name, center in genome.center.items():
                if self.sigma_of(genome, name) != 0:
                    self._make_optimizer(nn.Parameter(center), name)
        return state

    @property
    def size(self) -> int:
        """The population."""
        return self.population

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return member `i`; antithetic member 2k + 1 is the mirror image of 2k, of noise k."""
        if not self.antithetic:
            return self.perturbed(genome, seed, generation, i)
        member = self.perturbed(genome, seed, generation, i // 2)
        return Mirror(member, genome) if i % 2 else member

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
        ascent = _Ascent(self, genome, seed, generation, tuple(weights.tolist()))
        if self.optimizer is None:
            return Step(ascent), state
        return self._step_optimizers(ascent, genome, state)

    def _step_optimizers(self, ascent: _Ascent, genome: Genome, state: State) -> tuple[Step, State]:
        """Return the center after a step of each tensor's optimizer, and their new states."""
        stepped, saved = dict(genome.center), dict(state.get("optimizer", {}))
        for name, center in genome.center.items():
            sigma, unit = self.sigma_of(genome, name), self.scale_of(genome, name)
            if sigma == 0:
                continue
            gradient = ascent.total(name).div_(-self.population * sigma)
            weight = nn.Parameter(center.to(gradient.dtype) / unit)
            optimizer = self._make_optimizer(weight, name)
            if name in saved:  # a copy: the step works in place
                optimizer.load_state_dict(copy.deepcopy(saved[name]))
            before, weight.grad = weight.detach().clone(), gradient
            optimizer.step()
            step = genome.confine_(name, weight.detach().sub_(before))  # no weight decay there
            stepped[name] = step.mul_(unit).add_(center)
            saved[name] = optimizer.state_dict()
        return Step(Tensors(stepped)), {**state, "optimizer": saved}

    def _make_optimizer(
        self, weight: nn.Parameter, name: str = "a matrix"
    ) -> torch.optim.Optimizer:
        factory = self.optimizer
        if isinstance(factory, str):
            factory = _optimizer_class(factory)
        if not callable(factory):
            raise InputError(f"optimizer must be a name or a callable, got {factory!r}")
        if isinstance(factory, functools.partial) and "lr" in factory.keywords:
            raise InputError(
                f"the optimizer has lr={factory.keywords['lr']}, which lr={self.lr} would replace: "
                "leave it out of the partial"
            )
        try:
            made: Any = factory([weight], lr=self.lr)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the optimizer {self.optimizer!r} does not take {name!r}, shape "
                f"{tuple(weight.shape)}, with lr={self.lr} ({reason(error)}): choose another"
            ) from error
        if not isinstance(made, torch.optim.Optimizer):
            raise InputError(f"optimizer must make a torch.optim.Optimizer, got {made!r}")
        return made


def _optimizer_class(name: str) -> OptimizerFactory:
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    known.pop("Optimizer", None)
    if name not in known:
        raise unknown_name("optimizer", name, known)
    return known[name]


def _try_step(optimizer: torch.optim.Optimizer, given: object) -> None:
    """Step once from a gradient of zeros; raise ValueError where that needs more than gradients."""
    (weight,) = optimizer.param_groups[0]["params"]
    weight.grad = torch.zeros_like(weight)
    try:
        optimizer.step()
    except Exception as error:
        raise InputError(
            f"the optimizer {given!r} cannot step from dense gradients alone ({reason(error)}): "
            "choose one such as 'SGD' or 'Adam'"
        ) from error


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
        n = es.population
        factor = es.scale_of(self.genome, name) * es.lr / (n * sigma)
        return self.total(name).mul_(factor).add_(center)

    def total(self, name: str) -> Tensor:
        """Return the sum of the directions, each times its weight."""
        total = weighted_sum(
            self.strategy.noise,
            self.genome.center[name],
            dict(enumerate(self.weights)),
            seed=self.seed,
            generation=self.generation,
            name=name,
        )
        return self.genome.confine_(name, total)
