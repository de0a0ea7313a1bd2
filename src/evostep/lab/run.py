"""One run: a trunk of gradient descent, or an arm that goes on from it; checkpointed, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evostep.errors import InputError
from evostep.evolution import Record
from evostep.lab.arms import Arm, Training
from evostep.lab.models import build_model
from evostep.lab.options import Options
from evostep.lab.storage import History, load_checkpoint, save_checkpoint, save_weights
from evostep.lab.training import Parts, look, make_fitness, make_optimizer, train_epoch
from evostep.optimizer import Evolved


@dataclass(frozen=True)
class Watch:
    """Who is told how a run goes.

    Attributes:
        advance: told sample-forwards as they are spent.
        say: told one line of text after each epoch.
    """

    advance: Callable[[int], None] = lambda forwards: None
    say: Callable[[str], None] = lambda text: None


@dataclass
class Counters:
    """What a run has spent and done so far; saved with each checkpoint."""

    epoch: int = 0
    forwards: int = 0
    seconds: float = 0.0
    generations: int = 0
    accepted: int = 0
    failed: int = 0
    lines: int = 0


@dataclass
class Setting:
    """What the runs of one seed share."""

    options: Options
    seed: int
    parts: Parts
    device: torch.device
    directory: Path
    history: History
    watch: Watch = field(default_factory=Watch)

    def build(self) -> nn.Module:
        """Make the model as it is before any training: the same for every arm of the seed."""
        data = self.parts.data
        return build_model(
            self.options.model,
            channels=data.inputs.shape[1],
            classes=len(data.classes),
            image_size=data.inputs.shape[-1],
            seed=self.seed,
            pretrained=self.options.pretrained,
            init_from=self.options.init_from,
        ).to(self.device)

    def write(self, counters: Counters, record: dict[str, Any]) -> None:
        """Add a line to the history."""
        self.history.append(record)
        counters.lines += 1


def trunk_directory(directory: Path, training: Training, seed: int) -> Path:
    """Where the trunk of all arms with this training is kept."""
    return directory / "trunks" / f"{training.key}-seed{seed}"


def run_directory(directory: Path, label: str, seed: int) -> Path:
    """Where a run of an arm is kept."""
    return directory / "runs" / f"{label}-seed{seed}"


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
    model = setting.build()
    optimizer = make_optimizer(training, model)
    if checkpoint.exists():
        counters = _restore(checkpoint, model, optimizer, setting.device)
    setting.history.cut(name, seed, counters.lines)
    setting.watch.advance(counters.forwards)
    while counters.epoch < options.evolve_from:
        train_one(setting, name, training, model, optimizer, counters, None, {"arms": labels})
        save_weights(folder / f"epoch-{counters.epoch}.safetensors", model)
        _save(checkpoint, model, optimizer, counters)
    if not checkpoint.exists():  # evolution from the first epoch on
        _save(checkpoint, model, optimizer, counters)
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
    options = setting.options
    folder = run_directory(setting.directory, arm.label, setting.seed)
    checkpoint = folder / "checkpoint.pt"
    model = setting.build()
    optimizer: torch.optim.Optimizer = make_optimizer(arm.training, model)
    counters = _restore(trunk, model, optimizer, setting.device)
    shared = counters.forwards
    counters.lines = 0
    if arm.strategy is not None:
        optimizer = Evolved(
            optimizer,
            arm.strategy,
            space=arm.space,
            accept=arm.accept,
            model=model,
            seed=setting.seed,
        )
    if checkpoint.exists():
        counters = _restore(checkpoint, model, optimizer, setting.device)
    setting.history.cut(arm.label, setting.seed, counters.lines)
    setting.watch.advance(counters.forwards - shared)

    while not _finished(counters, options.epochs, budget):
        epoch = counters.epoch
        train_one(setting, arm.label, arm.training, model, optimizer, counters, budget, {})
        if isinstance(optimizer, Evolved) and not _spent(counters, budget):
            generations = arm.schedule.generations(epoch)
            evolve_one(setting, arm, optimizer, model, counters, epoch, generations, budget)
        _save(checkpoint, model, optimizer, counters)

    result = _conclude(setting, arm, model, counters)
    save_weights(folder / "model.safetensors", model)
    return result


def train_one(
    setting: Setting,
    name: str,
    training: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    budget: int | None,
    extra: dict[str, Any],
) -> None:
    """Train for one epoch (less, where the budget ends) and write its line of history."""
    began = time.perf_counter()
    data = setting.parts.data
    running, forwards = train_epoch(
        model,
        optimizer,
        setting.parts.gradients(training),
        data,
        training,
        seed=setting.seed,
        epoch=counters.epoch,
        max_forwards=None if budget is None else budget - counters.forwards,
        on_step=setting.watch.advance,
    )
    counters.seconds += time.perf_counter() - began
    counters.forwards += forwards
    seen = look(model, setting.parts.fitness, data, setting.options)
    record = {
        "kind": "epoch",
        "arm": name,
        "seed": setting.seed,
        "epoch": counters.epoch,
        "train": running,
        "fitness": seen,
        "sample_forwards": counters.forwards,
        "seconds": round(counters.seconds, 3),
        **extra,
    }
    setting.write(counters, record)
    counters.epoch += 1
    held_out = f", fitness set {seen['accuracy']:.2%}" if seen else ""
    setting.watch.say(
        f"{name} seed {setting.seed} epoch {counters.epoch}: train {running['accuracy']:.2%}, "
        f"loss {running['loss']:.3f}{held_out}"
    )


def evolve_one(
    setting: Setting,
    arm: Arm,
    optimizer: Evolved,
    model: nn.Module,
    counters: Counters,
    epoch: int,
    generations: int,
    budget: int | None,
) -> None:
    """Evolve for one phase (less, where the budget ends), a line of history each generation."""
    if not generations:
        return
    parts, data = setting.parts, setting.parts.data
    fitness = make_fitness(model, parts.fitness, data, setting.options)
    accept_on = None
    if len(parts.accept):
        accept_on = make_fitness(model, parts.accept, data, setting.options)

    def note(record: Record) -> None:
        counters.forwards += record.sample_forwards
        counters.seconds += record.seconds
        counters.generations += 1
        counters.accepted += int(record.accepted)
        counters.failed += record.failed
        line = {
            "kind": "generation",
            "arm": arm.label,
            "seed": setting.seed,
            "epoch": epoch,
            "generation": record.generation,
            "scores": [_finite(score) for score in record.scores],
            "parent": record.parent,
            "candidate": _finite(record.candidate),
            "accepted": record.accepted,
            "failed": record.failed,
            "sample_forwards": counters.forwards,
            "seconds": round(counters.seconds, 3),
        }
        setting.write(counters, line)
        setting.watch.advance(record.sample_forwards)

    records = optimizer.evolve(
        fitness,
        generations,
        accept_on=accept_on,
        max_forwards=None if budget is None else budget - counters.forwards,
        on_generation=note,
    )
    kept = sum(record.accepted for record in records)
    failed = sum(record.failed for record in records)
    setting.watch.say(
        f"{arm.label} seed {setting.seed} epoch {epoch + 1}: {len(records)} generations, "
        f"{kept} accepted, fitness {records[0].parent:.4f} -> {fitness():.4f}"
        + (f", {failed} members failed ({_first_error(records)})" if failed else "")
    )


def _conclude(
    setting: Setting, arm: Arm, model: nn.Module, counters: Counters
) -> dict[str, Any]:
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


def _spent(counters: Counters, budget: int | None) -> bool:
    return budget is not None and counters.forwards >= budget


def _finished(counters: Counters, epochs: int, budget: int | None) -> bool:
    return counters.epoch >= epochs if budget is None else _spent(counters, budget)


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and abs(value) < float("inf") else None


def _first_error(records: list[Record]) -> str | None:
    return next((record.error for record in records if record.error), None)


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counters: Counters
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "counters": vars(counters),
    }
    save_checkpoint(path, state)


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Counters:
    state = load_checkpoint(path, device)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return Counters(**state["counters"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"checkpoint {path} does not fit this run ({reason}): delete it, and the part of the "
            "run that it holds is done again"
        ) from error
