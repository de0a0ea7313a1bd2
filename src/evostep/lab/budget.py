"""Budgets in sample-forwards: what an arm costs, and what all arms may spend.

One example forward through the network is one sample-forward; its backward counts as two more.
Acceptance is paid for; looking (the curves by epoch, the test at the end) is not, for any arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evostep.lab.arms import Arm

PER_GRADIENT_EXAMPLE = 3  # one forward, and a backward that counts as two


@dataclass(frozen=True)
class Sizes:
    """How many examples each part of the data has."""

    train: int
    fitness: int
    accept: int
    test: int

    def training(self, arm: Arm) -> int:
        """How many examples the arm's gradients see in an epoch."""
        return self.train + (self.fitness + self.accept if arm.training.all_data else 0)


def epoch_cost(arm: Arm, sizes: Sizes) -> int:
    """Give the sample-forwards of one epoch of gradient descent."""
    return PER_GRADIENT_EXAMPLE * sizes.training(arm)


def generation_cost(arm: Arm, sizes: Sizes) -> int:
    """Give the most sample-forwards that one generation takes; the parent is scored, too."""
    if arm.strategy is None:
        return 0
    cost = (arm.strategy.size + 1) * sizes.fitness
    if arm.accept.needs_scores:
        if sizes.accept:
            cost += 2 * sizes.accept
        elif arm.method != "mutation":  # a child's score is known already
            cost += sizes.fitness
    return cost


def arm_cost(arm: Arm, sizes: Sizes, epochs: int) -> int:
    """Give the sample-forwards of a whole run of `epochs`, its share of the trunk included."""
    generations = sum(arm.schedule.generations(epoch) for epoch in range(epochs))
    return epochs * epoch_cost(arm, sizes) + generations * generation_cost(arm, sizes)


def common_budget(arms: list[Arm], sizes: Sizes, epochs: int) -> int:
    """Give the budget of a comparison: what its costliest arm needs."""
    return max(arm_cost(arm, sizes, epochs) for arm in arms)


def budgets(
    arms: list[Arm], sizes: Sizes, epochs: int, *, equal: bool
) -> Mapping[str, int | None]:
    """Give each arm's budget by label; None: as much as its epochs take."""
    common = common_budget(arms, sizes, epochs) if equal else None
    return {arm.label: common for arm in arms}
