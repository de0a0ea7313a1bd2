"""One run: a trunk of gradient descent, or an arm that goes on from it; checkpointed, resumable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from evostep.errors import InputError
from evostep.lab.arms.arm import Arm, Start, Training
from evostep.lab.arms.evaluation import evaluate_at_the_end
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.procedures.base import Learner
from evostep.lab.arms.seed_run import (
    Counters,
    SeedRun,
    run_directory,
    start_directory,
    trunk_directory,
)
from evostep.lab.checkpoints import (
    drop_checkpoint,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from evostep.lab.comparison.environment import warn_of_other_bits, what_bits_hang_on
from evostep.lab.weights import save_weights

CHECKPOINT = "checkpoint.pt"  # of a run that is not finished
LAST = "last.pt"  # of a trunk or a start, where others begin


class _Saved(Protocol):
    def state(self) -> dict[str, Any]: ...


def run_trunk(seed_run: SeedRun, training: Training, labels: list[str]) -> Path:
    """Train the trunk up to the epoch of the first evolution, or what is missing of it.

    Its last state stays, for arms to branch from; also where it diverged, which ends them, too.

    Returns:
        The checkpoint from which arms branch.
    """
    options, seed = seed_run.options, seed_run.seed
    folder = trunk_directory(seed_run.directory, training, seed)
    checkpoint = folder / LAST
    name = f"trunk:{training.key}"
    counters = Counters()
    learner = Learner(seed_run, training)
    if has_checkpoint(checkpoint):
        counters = _restore(seed_run, checkpoint, learner.load)
    seed_run.history.cut(name, seed, counters.lines)
    seed_run.watch.advance(counters.forwards)
    while counters.epoch < options.evolve_from and not counters.diverged:
        learner.descend(name, counters, arms=labels)
        _save(seed_run, checkpoint, learner, counters)
    if not checkpoint.exists():  # evolution from the first epoch on
        _save(seed_run, checkpoint, learner, counters)
    return checkpoint


def run_start(seed_run: SeedRun, start: Start, labels: list[str], trunk: Path) -> Path:
    """Run the arm from whose end others start, up to there, or what is missing of it.

    Its history stands under a name of its own: where it is an arm of the comparison, too, it goes
    on to the whole budget there.

    Args:
        seed_run: of the seed.
        start: what to run.
        labels: of the arms that start there.
        trunk: checkpoint to branch from, or of the start before.

    Returns:
        The checkpoint from which arms start.
    """
    folder = start_directory(seed_run.directory, start, seed_run.seed)
    last, checkpoint = folder / LAST, folder / CHECKPOINT
    if has_checkpoint(last):
        drop_checkpoint(checkpoint)
        return last
    arm = dataclasses.replace(start.arm, label=f"start:{start.name}")
    seed_run = dataclasses.replace(seed_run, arms=labels)
    model, counters = _train(seed_run, arm, trunk, start.budget, checkpoint)
    save_checkpoint(last, {"model": model.state_dict(), "counters": vars(counters)})
    drop_checkpoint(checkpoint)
    return last


def run_arm(seed_run: SeedRun, arm: Arm, trunk: Path, budget: int | None) -> dict[str, Any]:
    """Train one arm from the trunk to its end, or what is missing of it, and test it once.

    A run that diverges ends there. Its result says so, and has no numbers.

    Args:
        seed_run: of the seed.
        arm: what to run.
        trunk: checkpoint to branch from.
        budget: sample-forwards at which the run ends, the trunk's included; None: it ends with
            the last epoch.

    Returns:
        One entry of ``runs`` in ``results.json``.
    """
    folder = run_directory(seed_run.directory, arm.label, seed_run.seed)
    model, counters = _train(seed_run, arm, trunk, budget, folder / CHECKPOINT)
    result = _conclude(seed_run, arm, model, counters)
    save_weights(folder / "model.safetensors", model)
    return result


def _train(
    seed_run: SeedRun, arm: Arm, trunk: Path, budget: int | None, checkpoint: Path
) -> tuple[nn.Module, Counters]:
    """Train an arm from the trunk, or its start, to its end; return the model, and what it took."""
    learner = Learner(seed_run, arm.training)
    if arm.start is None:
        counters = _restore(seed_run, trunk, learner.load)
    else:  # weights and BatchNorm statistics; what the arm does with them is its own
        counters = _restore(seed_run, trunk, lambda s: learner.model.load_state_dict(s["model"]))
        counters.generations = counters.accepted = counters.failed = 0
    shared = counters.forwards
    counters.lines = 0
    procedure = PROCEDURES[arm.procedure](seed_run, arm, learner.state())
    if has_checkpoint(checkpoint):
        counters = _restore(seed_run, checkpoint, procedure.load)
    seed_run.history.cut(arm.label, seed_run.seed, counters.lines)
    seed_run.watch.advance(counters.forwards - shared)
    while not counters.diverged and not procedure.finished(counters, budget):
        procedure.epoch(counters, budget)
        _save(seed_run, checkpoint, procedure, counters)
    model = procedure.learner.model if counters.diverged else procedure.finish(counters)
    return model, counters


def _conclude(seed_run: SeedRun, arm: Arm, model: nn.Module, counters: Counters) -> dict[str, Any]:
    """Measure the final model, and say what the run has spent and done."""
    all_data = arm.training.all_data
    measured: dict[str, Any] = evaluate_at_the_end(
        model, seed_run.parts, seed_run.options, all_data=all_data
    )
    if not counters.diverged and not math.isfinite(measured["test"]["loss"]):
        counters.diverged = "outputs that are not finite at the end"
        seed_run.watch.warn(f"{arm.label} seed {seed_run.seed} diverged: {counters.diverged}")
    if counters.diverged:
        measured = {part: dict.fromkeys(values) for part, values in measured.items()}
    return {
        "arm": arm.label,
        "seed": seed_run.seed,
        **measured,
        **({"diverged": counters.diverged} if counters.diverged else {}),
        "sample_forwards": counters.forwards,
        "seconds": round(counters.seconds, 2),
        "epochs": counters.epoch,
        "generations": counters.generations,
        "accepted": counters.accepted,
        "failed": counters.failed,
    }


def _save(seed_run: SeedRun, path: Path, saved: _Saved, counters: Counters) -> None:
    seed_run.history.sync()  # its lines are counted
    made_on = what_bits_hang_on(seed_run.device)
    save_checkpoint(path, {**saved.state(), "counters": vars(counters), "made_on": made_on})


def _restore(seed_run: SeedRun, path: Path, load: Callable[[dict[str, Any]], object]) -> Counters:
    state = load_checkpoint(path, seed_run.device)
    try:
        load(state)
        counters = Counters(**state["counters"])
        warn_of_other_bits(state.get("made_on", {}), seed_run.device)
        return counters
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"checkpoint {path} does not fit this run ({reason}): delete it, and the part of the "
            "run that it holds is done again"
        ) from error
