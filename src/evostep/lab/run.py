"""One run: a trunk of gradient descent, or an arm that goes on from it; checkpointed, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from evostep.errors import InputError
from evostep.lab.arms import Arm, Training
from evostep.lab.courses import Base, make_course
from evostep.lab.epochs import descend
from evostep.lab.setting import Counters, Setting, run_directory, trunk_directory
from evostep.lab.storage import load_checkpoint, save_checkpoint, save_weights
from evostep.lab.training import look


class _Saved(Protocol):
    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


def run_trunk(setting: Setting, training: Training, labels: list[str]) -> Path:
    """Train the trunk up to the epoch of the first evolution, or what is missing of it.

    The weights of each epoch stay; of the optimizer's state only the last.

    Returns:
        The checkpoint from which arms branch.
    """
    options, seed = setting.options, setting.seed
    folder = trunk_directory(setting.directory, training, seed)
    checkpoint = folder / "last.pt"
    name = f"trunk:{training.key}"
    counters = Counters()
    base = Base(setting, training)
    if checkpoint.exists():
        counters = _restore(setting, checkpoint, base)
    setting.history.cut(name, seed, counters.lines)
    setting.watch.advance(counters.forwards)
    while counters.epoch < options.evolve_from:
        descend(setting, name, training, base.model, base.optimizer, counters, arms=labels)
        save_weights(folder / f"epoch-{counters.epoch}.safetensors", base.model)
        _save(checkpoint, base, counters)
    if not checkpoint.exists():  # evolution from the first epoch on
        _save(checkpoint, base, counters)
    return checkpoint


def run_arm(setting: Setting, arm: Arm, trunk: Path, budget: int | None) -> dict[str, Any]:
    """Train one arm from the trunk to its end, or what is missing of it, and test it once.

    Args:
        setting: of the seed.
        arm: what to run.
        trunk: checkpoint to branch from.
        budget: sample-forwards at which the run ends, the trunk's included; None: it ends with
            the last epoch.

    Returns:
        One entry of ``runs`` in ``results.json``.
    """
    folder = run_directory(setting.directory, arm.label, setting.seed)
    checkpoint = folder / "checkpoint.pt"
    base = Base(setting, arm.training)
    counters = _restore(setting, trunk, base)
    shared = counters.forwards
    counters.lines = 0
    course = make_course(setting, arm, base.state())
    if checkpoint.exists():
        counters = _restore(setting, checkpoint, course)
    setting.history.cut(arm.label, setting.seed, counters.lines)
    setting.watch.advance(counters.forwards - shared)
    while not _finished(counters, arm, budget):
        course.epoch(counters, budget)
        _save(checkpoint, course, counters)
    model = course.finish(counters)
    result = _conclude(setting, arm, model, counters)
    save_weights(folder / "model.safetensors", model)
    return result


def _finished(counters: Counters, arm: Arm, budget: int | None) -> bool:
    return counters.epoch >= arm.epochs if budget is None else counters.left(budget) == 0


def _conclude(setting: Setting, arm: Arm, model: nn.Module, counters: Counters) -> dict[str, Any]:
    """Look at the final model: the only time that the test examples are read."""
    parts, options = setting.parts, setting.options
    return {
        "arm": arm.label,
        "seed": setting.seed,
        "test": look(model, parts.test, parts.data, options),
        "train": look(model, parts.gradients(arm.training), parts.data, options),
        "fitness": look(model, parts.fitness, parts.data, options),
        "accept": look(model, parts.accept, parts.data, options),
        "sample_forwards": counters.forwards,
        "seconds": round(counters.seconds, 2),
        "epochs": counters.epoch,
        "generations": counters.generations,
        "accepted": counters.accepted,
        "failed": counters.failed,
    }


def _save(path: Path, saved: _Saved, counters: Counters) -> None:
    save_checkpoint(path, {**saved.state(), "counters": vars(counters)})


def _restore(setting: Setting, path: Path, saved: _Saved) -> Counters:
    state = load_checkpoint(path, setting.device)
    try:
        saved.load(state)
        return Counters(**state["counters"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"checkpoint {path} does not fit this run ({reason}): delete it, and the part of the "
            "run that it holds is done again"
        ) from error
