"""Scoring any model of a population, the same way for all, and counting what that costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evostep.noise import derive_seed
from evostep.population.individual import Individual
from evostep.scoring.calibration import Calibration
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness, at_its_best
from evostep.scoring.isolation import ModuleState, seed_everything
from evostep.scoring.scores import Scores

FitnessOfModel = Fitness | Callable[[nn.Module], float | Fitness]


class Scorer:
    """Scores models by one fitness, on examples that are fixed within a phase.

    Args:
        fitness: a `Fitness`, whose model is replaced by the one to score; or a callable on a model
            that returns a number, or a `Fitness` (it is then asked once).
        seed: with the phase it determines examples and random streams.

    Attributes:
        calibration: estimates BatchNorm statistics of offspring; None: the fitness's own does, if
            it has one.
        sample_forwards: examples scored so far; calls, where the fitness gives numbers. Those on
            which statistics were estimated are counted, too.
    """

    def __init__(self, fitness: FitnessOfModel, seed: int) -> None:
        if not callable(fitness):
            raise ValueError(
                "fitness must be an evostep.Fitness or a callable on a model, got "
                f"{type(fitness).__name__}"
            )
        self.seed = seed
        self.sample_forwards = 0
        self.calibration: Calibration | None = None
        self._call: Callable[..., Any] = fitness
        self._fitness = fitness if isinstance(fitness, Fitness) else None

    def attempt(self, model: nn.Module, phase: int) -> Scores:
        """Score `model` as it stands; an error or a value that is not finite is a failure."""
        evaluator, round = self._evaluator(model, phase)
        scores = evaluator.attempt(round, calibrate=False)
        self.sample_forwards += evaluator.spent
        return scores

    def propose(self, one: Individual, phase: int) -> tuple[Scores, dict[str, Tensor]]:
        """Score weights that no gradient step led to, with statistics that fit them.

        Returns:
            What `attempt` returns, and the buffers that were scored; none where nothing estimates.
        """
        try:
            buffers = self._calibrate(one, phase)
        except Exception as error:
            return Scores.failure(error), {}
        return self.attempt(one.model, phase), buffers

    @torch.no_grad()
    def _calibrate(self, one: Individual, phase: int) -> dict[str, Tensor]:
        own = self._fitness.calibration if self._fitness is not None else None
        calibration = self.calibration or own
        if calibration is None:
            return {}
        seed_everything(derive_seed(self.seed, phase, "calibration"))
        self.sample_forwards += calibration(one.model)
        return {name: buffer.detach().clone() for name, buffer in one.buffers().items()}

    def score(self, model: nn.Module, phase: int) -> float:
        """Score `model` as it stands, NaN if not finite; what the fitness raises propagates."""
        evaluator, round = self._evaluator(model, phase)
        value = evaluator.score(round).value
        self.sample_forwards += evaluator.spent
        return value if math.isfinite(value) else math.nan

    def at_its_best(self, value: float) -> bool:
        """Return whether no score can be higher."""
        return at_its_best(self._fitness, value)

    def _evaluator(self, model: nn.Module, phase: int) -> tuple[Evaluator, Round]:
        fitness: Fitness | Callable[[], float] = partial(self._number, model, phase)
        if self._fitness is not None:
            fitness = copy.copy(self._fitness)
            fitness.model = model
        evaluator = Evaluator(fitness, ModuleState(model))
        return evaluator, evaluator.round(self.seed, phase)

    def _number(self, model: nn.Module, phase: int) -> float:
        made = self._call(model)
        if isinstance(made, Fitness):
            self._fitness = made
            examples = made.examples(self.seed, phase)
            self.sample_forwards += len(examples) - 1  # the call was counted as one
            return made.score(examples).value
        try:
            return float(made)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                "fitness(model) must return a number or an evostep.Fitness, got "
                f"{type(made).__name__}"
            ) from error
