"""Budgets in sample-forwards: what an arm costs, and what all arms may spend.

One example forward through the network is one sample-forward; its backward counts as two more.
Acceptance is paid for; evaluation (the curves by epoch, the test at the end) is not, for any arm.
A run ends with the step or generation that reaches its budget, so it may spend a bit more: at most
one generation (of a population: one epoch).
What the parts of a run cost, its procedure knows (`evostep.lab.arms.procedures`).
"""

from __future__ import annotations

from collections.abc import Mapping

from evostep.errors import InputError
from evostep.lab.arms.arm import Arm
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.procedures.base import descent_cost
from evostep.lab.data.parts import Sizes


def trunk_cost(arm: Arm, sizes: Sizes) -> int:
    """Return the sample-forwards of the trunk from which an arm branches."""
    return arm.schedule.start * descent_cost(arm.training, sizes)


def arm_cost(arm: Arm, sizes: Sizes) -> int:
    """Return the most sample-forwards of a whole run, the trunk included."""
    procedure = PROCEDURES[arm.procedure]
    epochs = range(arm.schedule.start, arm.epochs)
    phases = (procedure.phase_cost(arm, sizes, arm.schedule.generations(e)) for e in epochs)
    own = len(epochs) * procedure.epoch_cost(arm, sizes) + sum(phases)
    return trunk_cost(arm, sizes) + own + procedure.finish_cost(arm, sizes)


def common_budget(arms: list[Arm], sizes: Sizes) -> int:
    """Return the budget of a comparison: what its costliest arm needs."""
    return max(arm_cost(arm, sizes) for arm in arms)


def budgets(
    arms: list[Arm], sizes: Sizes, *, equal: bool, budget: int | None = None
) -> Mapping[str, int | None]:
    """Return each arm's budget by label; None: as much as its epochs take.

    Args:
        arms: of the comparison.
        sizes: of the parts of the data.
        equal: whether they have one in common.
        budget: which; None: what the costliest arm needs.

    Raises:
        InputError: a budget that ends before an arm has left its trunk, or evolved.
    """
    for arm in arms:
        epochs = 0 if arm.at_end or not arm.schedule.evolution else arm.schedule.gradient
        least = trunk_cost(arm, sizes) + epochs * PROCEDURES[arm.procedure].epoch_cost(arm, sizes)
        if budget is not None and budget <= least:
            what = "its first evolution comes" if epochs else "its trunk ends"
            raise InputError(
                f"--budget {budget} is too small for arm {arm.label!r}, where {what} after {least} "
                "sample-forwards: raise it"
            )
    common = (budget or common_budget(arms, sizes)) if equal else None
    return {arm.label: common for arm in arms}
