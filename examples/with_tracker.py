"""A tracker of one's own, beside the file of lines that is always there.

python examples/with_tracker.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from digits import network, parts, tell
from torch.nn import functional as F
from torch.utils.data import DataLoader

import evostep
from evostep.integrations import Jsonl, Tracker, evolve


class Console(Tracker):
    """Prints a line after each phase."""

    def begin(self, optimizer: evostep.Evolved) -> None:
        """Tell what evolves."""
        print(f"{optimizer.evolution.strategy} from generation {optimizer.evolution.generation}")

    def phase(self, records: Sequence[evostep.Record], step: int | None) -> None:
        """Tell what a phase did."""
        print(f"step {step}: {records[0].parent:.3f} -> {records[-1].parent:.3f}")


def main() -> None:
    """Train, evolve, and tell two trackers."""
    train, for_evolution, _ = parts()
    model = network()
    optimizer = evostep.Evolved(
        torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9),
        evostep.OpenAIES(sigma=0.05, lr=0.03, population=16),
    )
    fitness = evostep.Fitness(model, DataLoader(for_evolution, 640), "macro-f1")
    path = Path(tempfile.mkdtemp()) / "evolution.jsonl"
    trackers = [Jsonl(path), Console()]
    for tracker in trackers:
        tracker.begin(optimizer)
    for epoch in range(3):
        for inputs, targets in DataLoader(train, 32, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        evolve(optimizer, fitness, 5, trackers=trackers, step=20 * (epoch + 1))
    for tracker in trackers:
        tracker.close()
    print(path.read_text().splitlines()[1][:76], "...")
    tell(optimizer.history, "macro-F1")


if __name__ == "__main__":
    main()
