"""Courses: what a run of an arm does from the trunk on, epoch by epoch, and what it ends with.

A course is made with the model as it is before training; `load` brings it to where the trunk, or
the run itself, was saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from evostep.calibration import Calibration
from evostep.fitness import Fitness
from evostep.gradient_noise import GradientNoise
from evostep.lab.arms import Arm, Training
from evostep.lab.budget import phase_cost
from evostep.lab.epochs import descend, evolve
from evostep.lab.setting import Counters, Setting
from evostep.lab.training import look_batches, make_fitness, make_optimizer
from evostep.optimizer import Evolved
from evostep.spaces.span import Span


class Base:
    """A model and the optimizer that trains it: what the trunk and every course begin with."""

    def __init__(self, setting: Setting, training: Training) -> None:
        self.model = setting.build()
        self.optimizer = make_optimizer(training, self.model)
        self.noise: GradientNoise | None = None
        if training.gradient_noise:
            self.noise = GradientNoise(
                self.optimizer, eta=training.gradient_noise, seed=setting.seed
            )

    def state(self) -> dict[str, Any]:
        """Give what is saved: plain tensors and numbers."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state if self.noise is None else {**state, "noise": self.noise.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.noise is not None:
            self.noise.load_state_dict(state["noise"])


class Course(ABC):
    """What a run does from the trunk on."""

    def __init__(self, setting: Setting, arm: Arm, trunk: dict[str, Any]) -> None:
        self.setting, self.arm = setting, arm
        self.base = Base(setting, arm.training)
        self.base.load(trunk)

    @abstractmethod
    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch, and what follows it; stop where the budget is reached."""

    def finish(self, counters: Counters) -> nn.Module:
        """Give the model that is tested."""
        return self.base.model

    def state(self) -> dict[str, Any]:
        """Give what is saved after each epoch: plain tensors and numbers."""
        return self.base.state()

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.base.load(state)


class Plain(Course):
    """Gradient descent alone."""

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch."""
        arm, base = self.arm, self.base
        descend(self.setting, arm.label, arm.training, base.model, base.optimizer, counters, budget)


class Averaging(Plain):
    """Gradient descent, and the mean of the weights after each epoch: SWA (arXiv 1803.05407)."""

    def __init__(self, setting: Setting, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(setting, arm, trunk)
        self.average = AveragedModel(self.base.model)

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch and take its weights into the mean."""
        super().epoch(counters, budget)
        self.average.update_parameters(self.base.model)

    def finish(self, counters: Counters) -> nn.Module:
        """Give the mean, its BatchNorm statistics estimated on the training examples."""
        model: nn.Module = self.average.module
        part = self.setting.parts.gradients(self.arm.training)
        reader = Fitness(model, look_batches(part, self.setting.parts.data))
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            counters.forwards += Calibration(reader)(model)
        return model

    def state(self) -> dict[str, Any]:
        """Give the run's state and the mean."""
        return {**super().state(), "average": self.average.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        super().load(state)
        self.average.load_state_dict(state["average"])


class Alternating(Course):
    """Gradient descent and evolution in turns: `Evolved`."""

    def __init__(self, setting: Setting, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(setting, arm, trunk)
        assert arm.strategy is not None, "only an arm that evolves alternates"
        model, data = self.base.model, setting.parts.data
        self.evolved = Evolved(
            self.base.optimizer,
            arm.strategy,
            space=arm.space,
            accept=arm.accept,
            model=model,
            seed=setting.seed,
            engine=setting.options.engine,
        )
        self.base.optimizer = self.evolved
        if isinstance(arm.space, Span):
            self.evolved.remember()  # where the trunk ended: a first phase has two to mix
        calibration = None
        if arm.mixes:
            part = setting.parts.train.spread(setting.options.calibration_size)
            calibration = look_batches(part, data)
        parts = setting.parts
        self.fitness = make_fitness(model, parts.fitness, data, setting.options, calibration)
        self.accept_on = None
        if len(parts.accept) and arm.accept.needs_scores:
            self.accept_on = make_fitness(model, parts.accept, data, setting.options)

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch; remember its weights where a `Span` mixes them; evolve when it is time."""
        setting, arm, epoch = self.setting, self.arm, counters.epoch
        generations, descent_ends = arm.schedule.generations(epoch), budget
        if arm.at_end and budget is not None:  # gradients have what the one phase leaves
            whole = arm.schedule.evolution
            descent_ends = budget - phase_cost(arm, setting.sizes, whole)
            generations = 0
        if descent_ends is None or counters.forwards < descent_ends:
            model = self.base.model
            descend(setting, arm.label, arm.training, model, self.evolved, counters, descent_ends)
            if isinstance(arm.space, Span):
                self.evolved.remember()
        if arm.at_end and descent_ends is not None and counters.forwards >= descent_ends:
            # the phase was reckoned at its most: what is over goes on in a further one
            generations = arm.schedule.evolution
        if generations and counters.left(budget) != 0:
            evolve(
                setting,
                arm.label,
                self.evolved,
                self.fitness,
                self.accept_on,
                generations,
                counters,
                budget,
            )


def make_course(setting: Setting, arm: Arm, trunk: dict[str, Any]) -> Course:
    """Make the course of an arm, standing where the trunk ended."""
    if arm.course == "population":
        from evostep.lab.population import Population

        return Population(setting, arm, trunk)
    courses: dict[str, type[Course]] = {
        "plain": Plain,
        "averaging": Averaging,
        "alternating": Alternating,
    }
    return courses[arm.course](setting, arm, trunk)
