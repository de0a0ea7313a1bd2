"""What the runs of one seed share, and what each of them counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evostep.lab.arms.arm import Start, Training
from evostep.lab.data.images import ImageData
from evostep.lab.data.parts import Parts, Sizes
from evostep.lab.models import build_model
from evostep.lab.options import Options
from evostep.lab.storage import History


def make_model(options: Options, data: ImageData, seed: int, device: torch.device) -> nn.Module:
    """Make the model that the options ask for, to fit the data, as it is before any training."""
    return build_model(
        options.model,
        channels=data.inputs.shape[1],
        classes=len(data.classes),
        image_size=data.inputs.shape[-1],
        seed=seed,
        pretrained=options.pretrained,
        init_from=options.init_from,
    ).to(device)


@dataclass(frozen=True)
class Watch:
    """What is called as a run goes on.

    Attributes:
        advance: with sample-forwards as they are spent.
        say: with one line of text after each epoch and phase.
        warn: with one line of text that must not be missed.
    """

    advance: Callable[[int], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    warn: Callable[[str], None] = lambda _: None


@dataclass
class Counters:
    """What a run has spent and done so far; saved with each checkpoint.

    `diverged` says where a loss was first not finite, which ends the run; empty where none was.
    """

    epoch: int = 0
    forwards: int = 0
    seconds: float = 0.0
    generations: int = 0
    accepted: int = 0
    failed: int = 0
    lines: int = 0
    diverged: str = ""

    def left(self, budget: int | None) -> int | None:
        """Return the sample-forwards that may still be spent; None: no budget."""
        return None if budget is None else max(0, budget - self.forwards)


@dataclass
class SeedRun:
    """What the runs of one seed share.

    `arms` are the labels of those that a line of history is of, where it is not of its own alone.
    """

    options: Options
    seed: int
    parts: Parts
    sizes: Sizes
    device: torch.device
    directory: Path
    history: History
    watch: Watch = field(default_factory=Watch)
    arms: Sequence[str] = ()

    def build(self) -> nn.Module:
        """Make the model as it is before any training: the same for every arm of the seed."""
        return make_model(self.options, self.parts.data, self.seed, self.device)

    def write(self, counters: Counters, record: dict[str, Any]) -> None:
        """Add a line to the history."""
        self.history.append({**record, "arms": list(self.arms)} if self.arms else record)
        counters.lines += 1


def trunk_directory(directory: Path, training: Training, seed: int) -> Path:
    """Return where the trunk of all arms with this training is kept."""
    return directory / "trunks" / f"{training.key}-seed{seed}"


def start_directory(directory: Path, start: Start, seed: int) -> Path:
    """Return where the run is kept from whose end others start."""
    return directory / "starts" / f"{start.name}-seed{seed}"


def run_directory(directory: Path, label: str, seed: int) -> Path:
    """Return where a run of an arm is kept."""
    return directory / "runs" / f"{label}-seed{seed}"
