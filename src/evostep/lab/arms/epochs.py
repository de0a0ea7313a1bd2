"""One epoch of gradient descent and one phase of evolution, each with its lines of history."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from evostep.lab.arms.arm import Training
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.arms.training import evaluate, train_epoch
from evostep.optimizer import Evolved
from evostep.record import Record
from evostep.scoring.fitness import Fitness


def descend(
    seed_run: SeedRun,
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
        seed_run.parts.gradients(training),
        seed_run.parts.data,
        training,
        seed=seed_run.seed,
        epoch=counters.epoch,
        max_forwards=counters.left(budget),
        on_step=seed_run.watch.advance,
    )
    counters.seconds += time.perf_counter() - began
    counters.forwards += forwards
    note_epoch(seed_run, name, model, counters, running, **extra)


def note_epoch(
    seed_run: SeedRun,
    name: str,
    model: nn.Module,
    counters: Counters,
    running: dict[str, float],
    **extra: Any,
) -> None:
    """Look at the model after an epoch, write the line of history, and count the epoch."""
    seen = evaluate(model, seed_run.parts.fitness, seed_run.parts.data, seed_run.options)
    record = {
        "kind": "epoch",
        "arm": name,
        "seed": seed_run.seed,
        "epoch": counters.epoch,
        "train": running,
        "fitness": seen,
        "sample_forwards": counters.forwards,
        "seconds": round(counters.seconds, 3),
        **extra,
    }
    seed_run.write(counters, record)
    counters.epoch += 1
    held_out = f", fitness set {seen['accuracy']:.2%}" if seen else ""
    seed_run.watch.say(
        f"{name} seed {seed_run.seed} epoch {counters.epoch}: train {running['accuracy']:.2%}, "
        f"loss {running['loss']:.3f}{held_out}"
    )


def evolve(
    seed_run: SeedRun,
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
        on_generation=lambda record: note_generation(seed_run, name, record, counters, epoch),
    )
    kept = sum(record.accepted for record in records)
    verdict = records[-1].verdict
    if verdict is not None and not verdict.accepted:  # what the generations gained is undone
        counters.accepted -= kept
        kept = 0
    where = f"{name} seed {seed_run.seed} epoch {counters.epoch}"
    seed_run.watch.say(
        f"{where}: {len(records)} generations, {kept} accepted, "
        f"fitness {records[0].parent:.4f} -> {fitness():.4f}"
    )
    warn_of_failures(seed_run, where, records)


def note_generation(
    seed_run: SeedRun, name: str, record: Record, counters: Counters, epoch: int
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
        "seed": seed_run.seed,
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
    seed_run.write(counters, line)
    seed_run.watch.advance(record.sample_forwards)


def warn_of_failures(seed_run: SeedRun, where: str, records: list[Record]) -> None:
    """Return how many scorings failed, and by what the first one did."""
    failed = sum(record.failed for record in records)
    if failed:
        error = next((record.error for record in records if record.error), None)
        seed_run.watch.warn(f"{where}: {failed} scorings failed ({error})")
