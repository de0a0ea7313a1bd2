"""An exponential moving average of the weights, after each gradient step.

    average <- d average + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t)) after t steps

Polyak and Juditsky 1992, https://doi.org/10.1137/0330046; the warm-up, without which the weights of
the trunk would weigh on a short run, is that of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.procedures.averaging import Averaging
from evostep.lab.arms.procedures.plain import Plain
from evostep.lab.arms.seed_run import Counters, SeedRun


def decay_after(steps: int, decay: float) -> float:
    """Return the share that the average keeps of itself.

    Example:
        >>> decay_after(0, 0.99), decay_after(10, 0.99), decay_after(10_000, 0.99)
        (0.1, 0.55, 0.99)
    """
    return min(decay, (1 + steps) / (10 + steps))


class MovingAverage(Averaging):
    """Gradient descent, and a moving average of the weights of each step from the trunk on."""

    reads: ClassVar[tuple[str, ...]] = ("ema_decay",)

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(seed_run, arm, trunk)

        def moved(average: Tensor, weights: Tensor, steps: Tensor | int) -> Tensor:
            return average.lerp(weights, 1 - decay_after(int(steps), arm.ema_decay))

        self.average = AveragedModel(self.learner.model, avg_fn=moved)
        self.average.update_parameters(self.learner.model)  # torch's first one is a copy
        self.learner.optimizer.register_step_post_hook(
            lambda *_: self.average.update_parameters(self.learner.model)
        )

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Train for one epoch; the average follows each step."""
        Plain.epoch(self, counters, budget)
