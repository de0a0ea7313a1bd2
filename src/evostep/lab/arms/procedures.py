"""Courses: what a run of an arm does from the trunk on, epoch by epoch, and what it ends with.

A course is made with the model as it is before training; `load` brings it to where the trunk, or
the run itself, was saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from evostep.gradient_noise import GradientNoise
from evostep.lab.arms.arm import Arm, Training
from evostep.lab.arms.budget import phase_cost
from evostep.lab.arms.epochs import descend, evolve
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.arms.training import evaluation_batches, make_fitness, make_optimizer
from evostep.optimizer import Evolved
from evostep.scoring.calibration import Calibration
from evostep.scoring.fitness import Fitness
from evostep.spaces.span import Span


class Base:
    """A model and the optimizer that trains it: what the trunk and every course begin with."""

    def __init__(self, seed_run: SeedRun, training: Training) -> None:
        self.model = seed_run.build()
        self.optimizer = make_optimizer(training, self.model)
        self.noise: GradientNoise | None = None
        if training.gradient_noise:
            self.noise = GradientNoise(
                self.optimizer, eta=training.gradient_noise, seed=seed_run.seed
            )

    def state(self) -> dict[str, Any]:
        """Return what is saved: plain tensors and numbers."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state if self.noise is None else {**state, "noise": self.noise.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.noise is not None:
            self.noise.load_state_dict(state["noise"])


class Procedure(ABC):
    """What a run does from the trunk on."""

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        self.seed_run, self.arm = seed_run, arm
        self.base = Base(seed_run, arm.training)
        self.base.load(trunk)

    @abstractmethod
    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch, and what follows it; stop where the budget is reached."""

    def finish(self, counters: Counters) -> nn.Module:
        """Return the model that is tested."""
        return self.base.model

    def state(self) -> dict[str, Any]:
        """Return what is saved after each epoch: plain tensors and numbers."""
        return self.base.state()

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.base.load(state)


class Plain(Procedure):
    """Gradient descent alone."""

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch."""
        arm, base = self.arm, self.base
        descend(
            self.seed_run, arm.label, arm.training, base.model, base.optimizer, counters, budget
        )


class Averaging(Plain):
    """Gradient descent, and the mean of the weights after each epoch: SWA (arXiv 1803.05407)."""

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(seed_run, arm, trunk)
        self.average = AveragedModel(self.base.model)

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch and take its weights into the mean."""
        super().epoch(counters, budget)
        self.average.update_parameters(self.base.model)

    def finish(self, counters: Counters) -> nn.Module:
        """Return the mean, its BatchNorm statistics estimated on the training examples."""
        model: nn.Module = self.average.module
        part = self.seed_run.parts.gradients(self.arm.training)
        reader = Fitness(model, evaluation_batches(part, self.seed_run.parts.data))
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            counters.forwards += Calibration(reader)(model)
        return model

    def state(self) -> dict[str, Any]:
        """Return the run's state and the mean."""
        return {**super().state(), "average": self.average.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        super().load(state)
        self.average.load_state_dict(state["average"])


class Alternating(Procedure):
    """Gradient descent and evolution in turns: `Evolved`."""

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(seed_run, arm, trunk)
        assert arm.strategy is not None, "only an arm that evolves alternates"
        model, data = self.base.model, seed_run.parts.data
        self.evolved = Evolved(
            self.base.optimizer,
            arm.strategy,
            space=arm.space,
            accept=arm.accept,
            model=model,
            seed=seed_run.seed,
            engine=seed_run.options.engine,
        )
        self.base.optimizer = self.evolved
        if isinstance(arm.space, Span):
            self.evolved.remember()  # where the trunk ended: a first phase has two to mix
        calibration = None
        if arm.mixes:
            part = seed_run.parts.train.spread(seed_run.options.calibration_size)
            calibration = evaluation_batches(part, data)
        parts = seed_run.parts
        self.fitness = make_fitness(model, parts.fitness, data, seed_run.options, calibration)
        self.accept_on = None
        if len(parts.accept) and arm.accept.needs_scores:
            self.accept_on = make_fitness(model, parts.accept, data, seed_run.options)

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch; remember its weights where a `Span` mixes them; evolve when it is time."""
        seed_run, arm, epoch = self.seed_run, self.arm, counters.epoch
        generations, descent_ends = arm.schedule.generations(epoch), budget
        if arm.at_end and budget is not None:  # gradients have what the one phase leaves
            whole = arm.schedule.evolution
            descent_ends = budget - phase_cost(arm, seed_run.sizes, whole)
            generations = 0
        if descent_ends is None or counters.forwards < descent_ends:
            model = self.base.model
            descend(seed_run, arm.label, arm.training, model, self.evolved, counters, descent_ends)
            if isinstance(arm.space, Span):
                self.evolved.remember()
        if arm.at_end and descent_ends is not None and counters.forwards >= descent_ends:
            # the phase was reckoned at its most: what is over goes on in a further one
            generations = arm.schedule.evolution
        if generations and counters.left(budget) != 0:
            evolve(
                seed_run,
                arm.label,
                self.evolved,
                self.fitness,
                self.accept_on,
                generations,
                counters,
                budget,
            )


def make_procedure(seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> Procedure:
    """Make the course of an arm, standing where the trunk ended."""
    if arm.procedure == "population":
        from evostep.lab.arms.population import Population

        return Population(seed_run, arm, trunk)
    procedures: dict[str, type[Procedure]] = {
        "plain": Plain,
        "averaging": Averaging,
        "alternating": Alternating,
    }
    return procedures[arm.procedure](seed_run, arm, trunk)
