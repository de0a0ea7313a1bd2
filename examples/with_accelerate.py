"""Evolution in a loop with Accelerate, which hides `evolve` of the optimizer that it wraps.

    python examples/with_accelerate.py

Gradients first, evolution in the last epochs; other examples decide what is kept. The data are in
`digits.py`, beside this file.
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from digits import compare, halves, network, parts
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
    accelerator = Accelerator(cpu=True)
    base = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
    strategy = evostep.OpenAIES(sigma=0.3, lr=0.36, population=16)
    model, optimizer, loader = accelerator.prepare(
        net, evostep.Evolved(base, strategy), DataLoader(train, 32, shuffle=True)
    )
    net = accelerator.unwrap_model(model)
    fitness = evostep.Fitness(net, DataLoader(select, 320), "worst-class-recall")
    unseen = evostep.Fitness(net, DataLoader(decide, 320), "worst-class-recall")

    for epoch in range(8):
        for inputs, targets in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
        if evolution and epoch >= 4:
            evolve(optimizer, fitness, 5, accept_on=unseen)

    folder = tempfile.mkdtemp()
    accelerator.save_state(folder)
    accelerator.load_state(folder)
    return net, find_evolved(optimizer)


def main() -> None:
    """Train with evolution and without, and compare."""
    net, optimizer = trained(evolution=True)
    plain, _ = trained(evolution=False)
    compare(optimizer.history, net, plain, parts()[2])


if __name__ == "__main__":
    main()
