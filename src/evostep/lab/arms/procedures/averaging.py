"""Stochastic weight averaging: the mean of the weights along plain training.

Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
https://arxiv.org/abs/1803.05407. What differs: the learning rate stays as it is.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.procedures.plain import Plain
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.data.parts import Sizes
from evostep.scoring.calibration import Calibration, estimates


class Averaging(Plain):
    """Gradient descent, and the mean of the weights after each epoch from the trunk on."""

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(seed_run, arm, trunk)
        self.average = AveragedModel(self.learner.model)

    @classmethod
    def finish_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what estimating the mean's BatchNorm statistics takes, where it has any."""
        return sizes.gradients(arm.training.all_data)

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Train for one epoch and take its weights into the mean."""
        super().epoch(counters, budget)
        self.average.update_parameters(self.learner.model)

    def finish(self, counters: Counters) -> nn.Module:
        """Return the mean, its BatchNorm statistics estimated on the training examples."""
        model: nn.Module = self.average.module
        parts = self.seed_run.parts
        if estimates(model):
            batches = parts.gradients(self.arm.training.all_data).batches(parts.data)
            counters.forwards += Calibration(model, batches)(model)
        return model

    def state(self) -> dict[str, Any]:
        """Return the run's state and the mean."""
        return {**super().state(), "average": self.average.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        super().load(state)
        self.average.load_state_dict(state["average"])
