"""A loop of one's own: autocast and GradScaler, accumulated and clipped gradients, a scheduler.

    python examples/plain_loop.py

Evolution stands between two steps, when gradients are zero; the scaler, the scheduler and clipping
see an optimizer like any other.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from digits import network, parts, tell
from torch.nn import functional as F
from torch.utils.data import DataLoader

import evostep
from evostep.integrations import Jsonl, evolve


def main() -> None:
    """Train for some epochs, evolve after each, save and go on."""
    train, for_evolution, _ = parts()
    model = network()
    optimizer = evostep.Evolved(
        torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9),
        evostep.OpenAIES(sigma=0.05, lr=0.03, population=16),
    )
    fitness = evostep.Fitness(model, DataLoader(for_evolution, 640), "worst-class-recall")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    scaler = torch.amp.GradScaler("cpu")
    folder = Path(tempfile.mkdtemp())
    tracker = Jsonl(folder / "evolution.jsonl")
    tracker.begin(optimizer)

    for epoch in range(4):
        loader = DataLoader(train, 32, shuffle=True)
        for i, (inputs, targets) in enumerate(loader):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(inputs), targets) / 2
            scaler.scale(loss).backward()
            if i % 2:  # of two batches each
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        scheduler.step()
        evolve(optimizer, fitness, 5, trackers=[tracker], step=10 * (epoch + 1))
    tracker.close()

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "scaler": scaler.state_dict()}, folder / "checkpoint.pt")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    print(f"a state of generation {optimizer.evolution.generation} was loaded")
    print(f"{len(tracker.path.read_text().splitlines())} lines are in the tracker's file")
    tell(optimizer.history)


if __name__ == "__main__":
    main()
