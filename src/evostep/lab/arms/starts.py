"""Arms that start where another arm ended: `start-from`, resolved from labels to arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evostep.errors import InputError, unknown_name
from evostep.lab.arms.arm import Arm, Start
from evostep.lab.options import shown
from evostep.schedule import Alternate
from evostep.spaces.span import Span


def with_starts(arms: list[Arm], starts: Mapping[str, Any]) -> list[Arm]:
    """Return the arms, each with the one from whose end it starts, if any.

    An arm that evolves has generations alone from there on: as many as its phases between
    --evolve-from and --epochs have together. One that does not goes on by gradients, for as many
    epochs as lie between the two.

    Args:
        arms: of a comparison, as if they all began at a trunk.
        starts: label -> the label of the arm that it starts from, or None.

    Raises:
        InputError: no such arm, an arm that would start from itself, in one step or in several, or
            one that needs gradient steps of its own run.
    """
    by_label = {arm.label: arm for arm in arms}
    done: dict[str, Arm] = {}

    def resolve(label: str, path: tuple[str, ...]) -> Arm:
        wanted, arm = starts.get(label), by_label[label]
        if wanted is None:
            return arm
        if not isinstance(wanted, str):
            raise InputError(
                f"arm {label!r}: start_from must be the label of an arm, got {shown(wanted)}"
            )
        if wanted not in by_label:
            raise unknown_name(f"start of arm {label!r}", wanted, by_label.keys() - {label})
        if wanted in (*path, label):
            circle = " -> ".join((*path, label, wanted))
            raise InputError(
                f"arm {label!r} starts from itself ({circle}): let one of them begin at a trunk"
            )
        if label not in done:
            done[label] = _started(arm, resolve(wanted, (*path, label)))
        return done[label]

    return [resolve(arm.label, ()) for arm in arms]


def _started(arm: Arm, before: Arm) -> Arm:
    """Return an arm that goes on from the end of another."""
    first, own = before.epochs, arm.epochs - arm.schedule.start
    start = Start(before)
    if arm.strategy is None:
        schedule = replace(arm.schedule, start=first)
        return replace(arm, schedule=schedule, epochs=first + own, start=start)
    if not arm.schedule.evolution:
        raise InputError(
            f"arm {arm.label!r} starts from {before.label!r} and has nothing to do there: "
            "--generations must be at least 1, got 0"
        )
    needs = ""
    if isinstance(arm.space, Span):
        needs = "mixes checkpoints of its own run"
    elif arm.strategy.needs_guides:
        needs = "follows gradients of its own run"
    if needs:
        raise InputError(
            f"arm {arm.label!r} {needs}, and has none where it starts from {before.label!r}: "
            "choose another space or method, or leave start_from out"
        )
    phases = 1 if arm.at_end else max(1, own // arm.schedule.gradient)
    schedule = Alternate(1, arm.schedule.evolution * phases, first)
    return replace(arm, schedule=schedule, epochs=first + 1, start=start)
