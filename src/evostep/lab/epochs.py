"""One epoch of gradient descent and one phase of evolution, each with its lines of history."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from evostep.fitness import Fitness
from evostep.lab.arms import Training
from evostep.lab.setting import Counters, Setting
from evostep.lab.training import look, train_epoch
from evostep.optimizer import Evolved
from evostep.record import Record


def descend(
    setting: Setting,
    name: str,
    training: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    budget: int | None = None,
    **extra: Any,
) -> None:
    """Train for one epoch (less, where the budget ends) and write its line of history."""
    began = time.perf_counter()
    running, forwards = train_epoch(
        model,
        optimizer,
        setting.parts.gradients(training),
        setting.parts.data,
        training,
        seed=setting.seed,
        epoch=counters.epoch,
        max_forwards=counters.left(budget),
        on_step=setting.watch.advance,
    )
    counters.seconds += time.perf_counter() - began
    counters.forwards += forwards
    note_epoch(setting, name, model, counters, running, **extra)


def note_epoch(
    setting: Setting,
    name: str,
    model: nn.Module,
    counters: Counters,
    running: dict[str, float],
    **extra: Any,
) -> None:
    """Look at the model after an epoch, write the line of history, and count the epoch."""
    seen = look(model, setting.parts.fitness, setting.parts.data, setting.options)
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


def evolve(
    setting: Setting,
    name: str,
    optimizer: Evolved,
    fitness: Fitness,
    accept_on: Fitness | None,
    generations: int,
    counters: Counters,
    budget: int | None,
) -> None:
    """Evolve for one phase (less, where the budget ends), a line of history each generation."""
    epoch = counters.epoch - 1
    records = optimizer.evolve(
        fitness,
        generations,
        accept_on=accept_on,
        max_forwards=counters.left(budget),
        on_generation=lambda record: note_generation(setting, name, record, counters, epoch),
    )
    kept = sum(record.accepted for record in records)
    verdict = records[-1].verdict
    if verdict is not None and not verdict.accepted:  # what the generations gained is undone
        counters.accepted -= kept
        kept = 0
    where = f"{name} seed {setting.seed} epoch {counters.epoch}"
    setting.watch.say(
        f"{where}: {len(records)} generations, {kept} accepted, "
        f"fitness {records[0].parent:.4f} -> {fitness():.4f}"
    )
    warn_of_failures(setting, where, records)


def note_generation(
    setting: Setting, name: str, record: Record, counters: Counters, epoch: int
) -> None:
    """Count a generation and write its line of history."""
    counters.forwards += record.sample_forwards
    counters.seconds += record.seconds
    counters.generations += 1
    counters.accepted += int(record.accepted)
    counters.failed += record.failed
    line = {
        "kind": "generation",
        "arm": name,
        "seed": setting.seed,
        "epoch": epoch,
        "generation": record.generation,
        "scores": record.scores,
        "parent": record.parent,
        "candidate": record.candidate,
        "accepted": record.accepted,
        "failed": record.failed,
        "sample_forwards": counters.forwards,
        "seconds": round(counters.seconds, 3),
    }
    if record.verdict is not None:  # the last generation of a phase that was judged as a whole
        line["phase"] = {
            "parent": record.verdict.parent,
            "candidate": record.verdict.candidate,
            "accepted": record.verdict.accepted,
        }
    setting.write(counters, line)
    setting.watch.advance(record.sample_forwards)


def warn_of_failures(setting: Setting, where: str, records: list[Record]) -> None:
    """Say how many scorings failed, and by what the first one did."""
    failed = sum(record.failed for record in records)
    if failed:
        error = next((record.error for record in records if record.error), None)
        setting.watch.warn(f"{where}: {failed} scorings failed ({error})")
