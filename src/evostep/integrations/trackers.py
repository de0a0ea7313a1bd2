"""Trackers: who is told what evolution did. A file of lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evostep.errors import needs_package
from evostep.optimizer import Evolved
from evostep.record import Record


class Tracker:
    """Is told of a run in four places; a tracker of one's own overrides what it needs.

    Example:
        >>> class Printer(Tracker):
        ...     def generation(self, record):
        ...         print(f"generation {record.generation}: {record.parent:.0%}")
        >>> Printer().generation(Record(3, [], 0.5, None, False, 0, None, 0, 0.0))
        generation 3: 50%
    """

    def begin(self, optimizer: Evolved) -> None:
        """Open what is written to; `optimizer.evolution.generation` is above 0 after a resume."""

    def generation(self, record: Record) -> None:
        """Take what a generation did, as soon as it is done."""

    def phase(self, records: Sequence[Record], step: int | None) -> None:
        """Take all records of a phase, and after how many gradient steps it was."""

    def close(self) -> None:
        """Write what is not written yet."""


def scalars(record: Record) -> dict[str, float]:
    """Return what can be drawn of a record, by name; what is not finite is left out.

    ``evolution/parent``, ``best_member`` and ``mean_member`` are on the examples of the fitness;
    ``candidate`` and ``judged_parent`` on those of `accept_on=`, where it is given. ``accepted`` is
    0 or 1, ``failed`` counts members, ``sample_forwards`` and ``seconds`` are of the generation.

    Args:
        record: of a generation.

    Example:
        >>> record = Record(0, [0.5, 0.75], 0.5, 0.75, True, 0, None, 30, 0.1)
        >>> scalars(record)["evolution/best_member"]
        0.75
    """
    scored = [score for score in record.scores if math.isfinite(score)]
    found = {
        "parent": record.parent,
        "candidate": record.candidate,
        "judged_parent": record.judged_parent,
        "best_member": max(scored, default=None),
        "mean_member": sum(scored) / len(scored) if scored else None,
        "accepted": float(record.accepted),
        "failed": float(record.failed),
        "sample_forwards": float(record.sample_forwards),
        "seconds": record.seconds,
    }
    return {
        f"evolution/{name}": value
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


class Jsonl(Tracker):
    """Writes a line of JSON for the settings, each generation and each phase.

    A resumed run goes on with its file: lines of generations that the loaded state has not seen
    are dropped first. What is not finite is ``null``.

    Args:
        path: of the file; a run from its beginning replaces it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def begin(self, optimizer: Evolved) -> None:
        """Write the settings, or cut the file to what the state has seen."""
        evolution = optimizer.evolution
        lines = _read(self.path) if evolution.generation and self.path.exists() else []
        kept = [line for line in lines if line.get("generation", -1) < evolution.generation]
        if not kept:
            names = ("strategy", "space", "accept")
            settings = {name: repr(getattr(evolution, name)) for name in names}
            kept = [{"kind": "settings", **settings, "seed": evolution.seed}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_name(f"{self.path.name}.part")
        whole.write_text("".join(map(_line, kept)), encoding="utf-8")
        whole.replace(self.path)

    def generation(self, record: Record) -> None:
        """Append a line with all that the record holds."""
        self._append({"kind": "generation", **asdict(record)})

    def phase(self, records: Sequence[Record], step: int | None) -> None:
        """Append a line: the first and the last generation, the step, whether the weights moved."""
        numbers = {"first": records[0].generation, "generation": records[-1].generation}
        moved = any(record.moved for record in records)
        self._append({"kind": "phase", **numbers, "step": step, "moved": moved})

    def _append(self, content: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(content))


class TensorBoard(Tracker):
    """Writes `scalars` of each generation, by its number, for TensorBoard.

    Args:
        log_dir: a folder of a run.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.log_dir = Path(log_dir)
        self._writer: Any = None

    def begin(self, optimizer: Evolved) -> None:
        """Open the folder; generations that a resumed run repeats are hidden."""
        try:
            import tensorboard  # noqa: F401  # torch would say less of it
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            wanted = ("TensorBoard", "tensorboard", "evostep[tensorboard]")
            raise needs_package(*wanted, error) from error
        first = optimizer.evolution.generation
        self._writer = SummaryWriter(str(self.log_dir), purge_step=first or None)

    def generation(self, record: Record) -> None:
        """Write its numbers."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record.generation)

    def phase(self, records: Sequence[Record], step: int | None) -> None:
        """Let them be seen."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class WandB(Tracker):
    """Logs `scalars` of each generation to a run of Weights & Biases, by its number.

    Args:
        run: as `wandb.init` returns it, ended by whoever began it; None: one that is begun here.
        **settings: of `wandb.init`, such as ``mode="offline"``, where there is no run.
    """

    def __init__(self, run: Any = None, **settings: Any) -> None:
        self.run, self.settings = run, settings
        self._own = run is None

    def begin(self, optimizer: Evolved) -> None:
        """Begin the run where there is none, and say over what evolution's numbers are drawn."""
        try:
            import wandb
        except ImportError as error:
            raise needs_package("WandB", "wandb", "evostep[wandb]", error) from error
        if self.run is None:
            self.run = wandb.init(**self.settings)
        self.run.define_metric("evolution/generation")
        self.run.define_metric("evolution/*", step_metric="evolution/generation")

    def generation(self, record: Record) -> None:
        """Log its numbers."""
        self.run.log({"evolution/generation": record.generation, **scalars(record)})

    def close(self) -> None:
        """End the run, if it was begun here."""
        if self._own and self.run is not None:
            self.run.finish()
            self.run = None


def _line(content: dict[str, Any]) -> str:
    return json.dumps(_finite(content), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return it with None for what is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file up to one that was not written to its end."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
