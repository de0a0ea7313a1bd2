"""Evolution in a loop with Lightning's Fabric.

    python examples/with_fabric.py

Gradients first, evolution in the last epochs; other examples decide what is kept. The data are in
`digits.py`, beside this file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from digits import compare, halves, network, parts
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import evostep
from evostep.integrations import evolve, find_evolved


def trained(*, evolution: bool) -> tuple[nn.Module, evostep.Evolved]:
    """Train for eight epochs, evolve after the last four, save and load."""
    train, for_evolution, _ = parts()
    select, decide = halves(for_evolution)
    net = network()
    fabric = Fabric(accelerator="cpu")
    base = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
    strategy = evostep.OpenAIES(sigma=0.3, lr=0.36, population=16)
    model, optimizer = fabric.setup(net, evostep.Evolved(base, strategy))
    fitness = evostep.Fitness(net, DataLoader(select, 320), "worst-class-recall")
    unseen = evostep.Fitness(net, DataLoader(decide, 320), "worst-class-recall")
    loader = fabric.setup_dataloaders(DataLoader(train, 32, shuffle=True))

    for epoch in range(8):
        for inputs, targets in loader:
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
        if evolution and epoch >= 4:
            evolve(optimizer, fitness, 5, accept_on=unseen)

    path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
    fabric.save(path, {"model": model, "optimizer": optimizer})
    fabric.load(path, {"model": model, "optimizer": optimizer})
    return net, find_evolved(optimizer)


def main() -> None:
    """Train with evolution and without, and compare."""
    net, optimizer = trained(evolution=True)
    plain, _ = trained(evolution=False)
    compare(optimizer.history, net, plain, parts()[2])


if __name__ == "__main__":
    main()
