"""Evolution in a loop with Lightning's Fabric.

python examples/with_fabric.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from digits import network, parts, tell
from lightning.fabric import Fabric
from torch.nn import functional as F
from torch.utils.data import DataLoader

import evostep
from evostep.integrations import evolve, find_evolved


def main() -> None:
    """Train for some epochs, evolve after each, save and load."""
    train, for_evolution, _ = parts()
    net = network()
    fabric = Fabric(accelerator="cpu")
    base = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
    strategy = evostep.OpenAIES(sigma=0.05, lr=0.03, population=16)
    model, optimizer = fabric.setup(net, evostep.Evolved(base, strategy))
    fitness = evostep.Fitness(net, DataLoader(for_evolution, 640), "worst-class-recall")
    loader = fabric.setup_dataloaders(DataLoader(train, 32, shuffle=True))

    for _ in range(4):
        for inputs, targets in loader:
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
        evolve(optimizer, fitness, 5)

    path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
    fabric.save(path, {"model": model, "optimizer": optimizer})
    fabric.load(path, {"model": model, "optimizer": optimizer})
    tell(find_evolved(optimizer).history)


if __name__ == "__main__":
    main()
