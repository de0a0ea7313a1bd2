"""Model soups: the mean of checkpoints of the run, of all or of those that help.

Wortsman et al. 2022, "Model soups", https://arxiv.org/abs/2203.05482, section 2: uniform soup, and
greedy soup (Recipe 1). What differs: the checkpoints are of one run, after each of its epochs from
the trunk on, not of many runs that were fine-tuned apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.evaluation import make_fitness
from evostep.lab.arms.procedures.plain import Plain
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.data.parts import Sizes
from evostep.scoring.calibration import Calibration, estimates
from evostep.spaces.memory import Memory

MEMORY = 8  # checkpoints at most, thinned evenly: as many as `Span` keeps

State = Mapping[str, Tensor]


class UniformSoup(Plain):
    """Gradient descent, and at the end the mean of all checkpoints."""

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(seed_run, arm, trunk)
        self.checkpoints = Memory(MEMORY)
        self.checkpoints.add(self.learner.model.state_dict())
        parts = seed_run.parts
        batches = parts.train.spread(seed_run.options.calibration_size).batches(parts.data)
        self.calibrate: Calibration | None = None
        self.sizes = replace(seed_run.sizes, calibration=0)
        if estimates(self.learner.model):
            self.calibrate, self.sizes = Calibration(self.learner.model, batches), seed_run.sizes

    @classmethod
    def cooking_cost(cls, checkpoints: int, sizes: Sizes) -> int:
        """Return the most sample-forwards that mixing so many checkpoints takes."""
        return sizes.calibration

    @classmethod
    def finish_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what mixing the checkpoints of the arm's epochs takes."""
        return cls.cooking_cost(min(MEMORY, arm.epochs - arm.schedule.start + 1), sizes)

    @classmethod
    def reserve(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what `finish` takes: it is part of the budget."""
        return cls.finish_cost(arm, sizes)

    def _ends(self, budget: int | None) -> int | None:
        """Return where gradient steps end, so that the checkpoints there are can be mixed."""
        if budget is None:
            return None
        return budget - self.cooking_cost(len(self.checkpoints), self.sizes)

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Train for one epoch and keep its weights."""
        super().epoch(counters, self._ends(budget))
        self.checkpoints.add(self.learner.model.state_dict())

    def finished(self, counters: Counters, budget: int | None) -> bool:
        """Return whether what is left of the budget is for the mixing."""
        return super().finished(counters, self._ends(budget))

    def finish(self, counters: Counters) -> nn.Module:
        """Return the mean of the checkpoints."""
        self.mix([one.weights for one in self.checkpoints], counters)
        return self.learner.model

    def mix(self, ingredients: Sequence[State], counters: Counters) -> None:
        """Put the mean into the model, its BatchNorm statistics estimated again."""
        model = self.learner.model
        model.load_state_dict(ingredients[-1])  # what no gradient moves is as it stood last
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                whole = torch.stack([one[name].double() for one in ingredients])
                parameter.copy_(whole.mean(0))
        if self.calibrate is not None:
            counters.forwards += self.calibrate(model)

    def state(self) -> dict[str, Any]:
        """Return the run's state and the checkpoints."""
        return {**super().state(), "checkpoints": self.checkpoints.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        super().load(state)
        self.checkpoints.load_state_dict(state["checkpoints"])


class GreedySoup(UniformSoup):
    """Gradient descent, and at the end the mean of those checkpoints that help.

    From the best one on the fitness examples down, each is taken in where the mean with it scores
    at least as well there as without.
    """

    needs_fitness: ClassVar[bool] = True

    @classmethod
    def cooking_cost(cls, checkpoints: int, sizes: Sizes) -> int:
        """Return what scoring takes: of each, and of each but the best mixed with those before."""
        trial = sizes.fitness + super().cooking_cost(checkpoints, sizes)
        return checkpoints * sizes.fitness + (checkpoints - 1) * trial

    def finish(self, counters: Counters) -> nn.Module:
        """Return the mean of those that help."""
        seed_run, model = self.seed_run, self.learner.model
        parts = seed_run.parts
        fitness = make_fitness(model, parts.fitness, parts.data, seed_run.options)

        def score() -> float:
            counters.forwards += len(parts.fitness)
            return fitness()

        ranked: list[tuple[float, State]] = []
        for checkpoint in self.checkpoints:
            model.load_state_dict(checkpoint.weights)
            ranked.append((score(), checkpoint.weights))
        ranked.sort(key=lambda pair: -pair[0])  # of equals the earlier one is first
        best, chosen = ranked[0][0], [ranked[0][1]]
        kept = {name: t.clone() for name, t in ranked[0][1].items()}
        for _, weights in ranked[1:]:
            self.mix([*chosen, weights], counters)
            value = score()
            if value >= best:
                best, chosen = value, [*chosen, weights]
                kept = {name: t.clone() for name, t in model.state_dict().items()}
        model.load_state_dict(kept)
        return model
