"""Controls without gradient steps: the model as it is, calibrated, and the best of its settings."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

from torch import nn

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.evaluation import make_fitness
from evostep.lab.arms.procedures.base import Procedure
from evostep.lab.arms.seed_run import Counters
from evostep.lab.data.parts import Sizes
from evostep.scoring.calibration import Calibration, estimates


class Untouched(Procedure):
    """The model as it is: the control of whoever does nothing."""

    descends: ClassVar[bool] = False

    @classmethod
    def epoch_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return 0: there are no gradient steps."""
        return 0

    @classmethod
    def excess(cls, arm: Arm, sizes: Sizes) -> int:
        """Return 0: it spends what it needs, whatever the budget."""
        return 0

    def finished(self, counters: Counters, budget: int | None) -> bool:
        """Return True: `finish` is all there is."""
        return True

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do nothing."""


class Calibrated(Untouched):
    """The model as it is, its BatchNorm statistics estimated again on what it trained on."""

    @classmethod
    def finish_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what estimating takes, where there is anything to estimate."""
        return sizes.gradients(arm.training.all_data)

    def finish(self, counters: Counters) -> nn.Module:
        """Return the model with the statistics of the weights as they stand."""
        parts, model = self.seed_run.parts, self.learner.model
        if estimates(model):
            began = time.perf_counter()
            batches = parts.gradients(self.arm.training.all_data).batches(parts.data)
            counters.forwards += Calibration(model, batches)(model)
            counters.seconds += time.perf_counter() - began
        return model


class Tuning(Untouched):
    """The model's own settings, tuned by hand on the fitness examples: what an engineer would try.

    The model has a method ``tune(score)``, which sets them by calling ``score()``, and says in
    `tunings` how often it does so at most.
    """

    needs_fitness: ClassVar[bool] = True
    tunes: ClassVar[bool] = True

    @classmethod
    def finish_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what scoring each setting takes."""
        return sizes.tunings * sizes.fitness

    def finish(self, counters: Counters) -> nn.Module:
        """Return the model with the settings that it found."""
        seed_run, model = self.seed_run, self.learner.model
        tune: Any = model.tune
        fitness = make_fitness(model, seed_run.parts.fitness, seed_run.parts.data, seed_run.options)
        highest, began = -math.inf, time.perf_counter()

        def score() -> float:
            nonlocal highest
            value = fitness()
            highest = max(highest, value)
            counters.forwards += seed_run.sizes.fitness
            seed_run.watch.advance(seed_run.sizes.fitness)
            return value

        tune(score)
        counters.seconds += time.perf_counter() - began
        chosen = f": {model.choice}" if hasattr(model, "choice") else ""
        seed_run.watch.say(f"{self.arm.label} seed {seed_run.seed}: fitness {highest:.4f}{chosen}")
        return model
