"""Budgets in sample-forwards: what an arm costs, and what all arms may spend.

One example forward through the network is one sample-forward; its backward counts as two more.
Acceptance is paid for; looking (the curves by epoch, the test at the end) is not, for any arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evostep.lab.arms.arm import Arm
from evostep.strategies.base import SCALE_KINDS
from evostep.strategies.random_mutation import RandomMutation
from evostep.strategies.random_search import RandomSearch
from evostep.strategies.safe import Safe

PER_GRADIENT_EXAMPLE = 3  # one forward, and a backward that counts as two


@dataclass(frozen=True)
class Sizes:
    """How many examples each part of the data has, and how many estimate BatchNorm again."""

    train: int
    fitness: int
    accept: int
    test: int
    calibration: int = 0
    classes: int = 0

    def training(self, arm: Arm) -> int:
        """How many examples the arm's gradients see in an epoch."""
        return self.train + (self.fitness + self.accept if arm.training.all_data else 0)


def epoch_cost(arm: Arm, sizes: Sizes) -> int:
    """Return the sample-forwards of one epoch of gradient descent."""
    return PER_GRADIENT_EXAMPLE * sizes.training(arm)


def generation_cost(arm: Arm, sizes: Sizes) -> int:
    """Return the most sample-forwards that one generation takes; the parent is scored, too."""
    if arm.procedure == "population":
        return arm.population.offspring * sizes.fitness
    if arm.strategy is None:
        return 0
    again = sizes.calibration if arm.mixes else 0  # the center itself is scored as it stands
    cost = arm.strategy.size * (sizes.fitness + again) + sizes.fitness
    scale = getattr(arm.strategy, "scale", None)
    if isinstance(arm.strategy, RandomMutation) and scale not in SCALE_KINDS:
        safe = scale if isinstance(scale, Safe) else Safe()
        cost += safe.cost(sizes.fitness, sizes.classes, arm.strategy.size)
    if arm.accept.needs_scores and arm.accept.every == "generation":
        if sizes.accept:
            cost += 2 * sizes.accept + again
        elif not isinstance(arm.strategy, RandomMutation | RandomSearch):
            cost += sizes.fitness + again  # what these two propose has been scored
    return cost


def phase_cost(arm: Arm, sizes: Sizes, generations: int) -> int:
    """Return the most sample-forwards that a phase takes: generations, start and verdict."""
    if not generations:
        return 0
    cost = generations * generation_cost(arm, sizes)
    if arm.procedure == "population":
        return cost + arm.population.individuals * sizes.fitness
    again = sizes.calibration if arm.mixes else 0
    if arm.mixes:  # the average and the weights as they stand are both tried
        cost += 2 * sizes.fitness + again
    if arm.accept.needs_scores and arm.accept.every == "phase":
        cost += 2 * (sizes.accept or sizes.fitness) + again
    return cost


def arm_cost(arm: Arm, sizes: Sizes) -> int:
    """Return the sample-forwards of a whole run, its share of the trunk included."""
    start = arm.schedule.start
    phases = sum(
        phase_cost(arm, sizes, arm.schedule.generations(epoch)) for epoch in range(arm.epochs)
    )
    if arm.procedure == "population":
        mu = arm.population.individuals
        epochs = (arm.epochs - start) * mu * (epoch_cost(arm, sizes) + 2 * sizes.fitness)
        return start * epoch_cost(arm, sizes) + epochs + phases
    last = sizes.training(arm) if arm.procedure == "averaging" else 0
    return arm.epochs * epoch_cost(arm, sizes) + phases + last


def common_budget(arms: list[Arm], sizes: Sizes) -> int:
    """Return the budget of a comparison: what its costliest arm needs."""
    return max(arm_cost(arm, sizes) for arm in arms)


def budgets(arms: list[Arm], sizes: Sizes, *, equal: bool) -> Mapping[str, int | None]:
    """Return each arm's budget by label; None: as much as its epochs take."""
    common = common_budget(arms, sizes) if equal else None
    return {arm.label: common for arm in arms}
