"""Budgets in sample-forwards: what an arm costs, and what all arms may spend.

One example forward through the network is one sample-forward; its backward counts as two more.
Acceptance is paid for; evaluation (the curves by epoch, the test at the end) is not, for any arm.
A run ends with the step or generation that reaches its budget, so it may spend a bit more: at most
one generation (of a population: one epoch).
What the parts of a run cost, its procedure knows (`evostep.lab.arms.procedures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evostep.errors import InputError
from evostep.lab.arms.arm import Arm, Start
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.procedures.base import descent_cost
from evostep.lab.data.parts import Sizes


def trunk_cost(arm: Arm, sizes: Sizes) -> int:
    """Return the sample-forwards before an arm's own: of its trunk, or of where it starts."""
    if arm.start is not None:
        return arm_cost(arm.start.arm, sizes)
    return arm.schedule.start * descent_cost(arm.training, sizes)


def own_cost(arm: Arm, sizes: Sizes) -> int:
    """Return the most sample-forwards of an arm from its trunk, or its start, on."""
    procedure = PROCEDURES[arm.procedure]
    epochs = range(arm.schedule.start, arm.epochs)
    phases = (procedure.phase_cost(arm, sizes, arm.schedule.generations(e)) for e in epochs)
    own = len(epochs) * procedure.epoch_cost(arm, sizes) + sum(phases)
    return own + procedure.finish_cost(arm, sizes)


def arm_cost(arm: Arm, sizes: Sizes) -> int:
    """Return the most sample-forwards of a whole run, all that comes before it included."""
    return trunk_cost(arm, sizes) + own_cost(arm, sizes)


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
    if budget is not None:
        for arm in arms:
            _check_budget(arm, arms, sizes, budget)
    common = (budget or common_budget(arms, sizes)) if equal else None
    return {arm.label: common for arm in arms}


def _check_budget(arm: Arm, arms: list[Arm], sizes: Sizes, budget: int) -> None:
    """Refuse a budget that ends before an arm has left its trunk, or evolved, or has started."""
    if arm.start is not None:
        start, own = arm.start.arm, further_cost(arm.start.arm, arms, sizes)
        try:
            if budget <= own:
                raise InputError(f"its own part takes {own} sample-forwards: raise it")
            _check_budget(start, arms, sizes, budget - own)
        except InputError as error:
            raise InputError(
                f"--budget {budget} is too small for arm {arm.label!r}, which starts from "
                f"{start.label!r} {own} sample-forwards before its end ({error})"
            ) from None
        return
    epochs = 0 if arm.at_end or not arm.schedule.evolution else arm.schedule.gradient
    least = trunk_cost(arm, sizes) + epochs * PROCEDURES[arm.procedure].epoch_cost(arm, sizes)
    if budget <= least:
        what = "its first evolution comes" if epochs else "its trunk ends"
        raise InputError(
            f"--budget {budget} is too small for arm {arm.label!r}, where {what} after {least} "
            "sample-forwards: raise it"
        )


def further_cost(start: Arm, arms: list[Arm], sizes: Sizes) -> int:
    """Return the budget beyond their start that arms have in common: what the costliest needs."""
    own = [own_cost(a, sizes) for a in arms if a.start and a.start.arm.label == start.label]
    return max(own)


def settled(arm: Arm, arms: list[Arm], sizes: Sizes, budget: int | None) -> Arm:
    """Return an arm that knows where its start ends, and how far its learning rate falls.

    With a budget the start ends as much before it as all that start there need; a cosine falls over
    the sample-forwards from the arm's beginning (of its trunk, or where it started) to where its
    gradient steps end. Without one it falls over the epochs.

    Args:
        arm: of `arms`, or where one of them starts.
        arms: of the comparison.
        sizes: of the parts of the data.
        budget: of the arm; None: as much as its epochs take.
    """
    begin, end = 0, arm.epochs
    if budget is not None:
        end = budget - PROCEDURES[arm.procedure].reserve(arm, sizes)
    if arm.start is not None:
        before, begin = arm.start.arm, arm.schedule.start
        ends = None
        if budget is not None:
            begin = ends = budget - further_cost(before, arms, sizes)
        arm = replace(arm, start=Start(settled(before, arms, sizes, ends), ends))
    if arm.training.schedule == "constant":
        return arm
    return replace(arm, training=replace(arm.training, span=(begin, end)))
