"""What a run writes down: a line of history for each epoch and generation, counted as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from evostep.errors import counted
from evostep.lab.arms.evaluation import evaluate
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.record import Record


def note_epoch(
    seed_run: SeedRun,
    name: str,
    model: nn.Module,
    counters: Counters,
    running: dict[str, float],
    **extra: Any,
) -> None:
    """Measure the model after an epoch, write the line of history, and count the epoch.

    Where a loss is not finite the run has diverged: `counters` say so, and it is told.
    """
    measured = evaluate(model, seed_run.parts.fitness, seed_run.parts.data, seed_run.options)
    record = {
        "kind": "epoch",
        "arm": name,
        "seed": seed_run.seed,
        "epoch": counters.epoch,
        "train": running,
        "fitness": measured,
        "sample_forwards": counters.forwards,
        "seconds": round(counters.seconds, 3),
        **extra,
    }
    seed_run.write(counters, record)
    counters.epoch += 1
    for part, values in (("training", running), ("fitness", measured)):
        if values and not math.isfinite(values["loss"]) and not counters.diverged:
            counters.diverged = f"{part} loss {values['loss']} in epoch {counters.epoch}"
            seed_run.watch.warn(f"{name} seed {seed_run.seed} diverged: {counters.diverged}")
    held_out = f", fitness set {measured['accuracy']:.2%}" if measured else ""
    seed_run.watch.say(
        f"{name} seed {seed_run.seed} epoch {counters.epoch}: train {running['accuracy']:.2%}, "
        f"loss {running['loss']:.3f}{held_out}"
    )


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


def warn_of_failures(seed_run: SeedRun, where: str, records: Sequence[Record]) -> None:
    """Warn of scorings that failed: how many, and by what the first one did."""
    failed = sum(record.failed for record in records)
    if failed:
        error = next((record.error for record in records if record.error), None)
        seed_run.watch.warn(f"{where}: {counted(failed, 'scoring')} failed ({error})")
