"""A loop of one's own: autocast and GradScaler, accumulated and clipped gradients, a scheduler.

    python examples/plain_loop.py

Evolution stands between two steps, when gradients are zero; the scaler, the scheduler and clipping
see an optimizer like any other. Gradients first, evolution in the last epochs; other examples
decide what is kept. The data are in `digits.py`, beside this file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from digits import compare, halves, network, parts
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import evostep
from evostep.integrations import Jsonl, evolve


def trained(folder: Path, *, evolution: bool) -> tuple[nn.Module, evostep.Evolved]:
    """Train for eight epochs, evolve after the last four, save and go on."""
    train, for_evolution, _ = parts()
    select, decide = halves(for_evolution)
    model = network()
    optimizer = evostep.Evolved(
        torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9),
        evostep.OpenAIES(sigma=0.3, lr=0.36, population=16),
    )
    fitness = evostep.Fitness(model, DataLoader(select, 320), "worst-class-recall")
    unseen = evostep.Fitness(model, DataLoader(decide, 320), "worst-class-recall")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    scaler = torch.amp.GradScaler("cpu")
    tracker = Jsonl(folder / "evolution.jsonl")
    tracker.begin(optimizer)

    for epoch in range(8):
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
        if evolution and epoch >= 4:
            step = 10 * (epoch + 1)
            evolve(optimizer, fitness, 5, accept_on=unseen, trackers=[tracker], step=step)
    tracker.close()

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "scaler": scaler.state_dict()}, folder / "checkpoint.pt")
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    return model, optimizer


def main() -> None:
    """Train with evolution and without, and compare."""
    folder = Path(tempfile.mkdtemp())
    plain, _ = trained(folder, evolution=False)
    model, optimizer = trained(folder, evolution=True)
    print(f"a state of generation {optimizer.evolution.generation} was loaded")
    lines = (folder / "evolution.jsonl").read_text().splitlines()
    print(f"{len(lines)} lines are in the tracker's file")
    compare(optimizer.history, model, plain, parts()[2])


if __name__ == "__main__":
    main()
