"""Evolution in a loop with Accelerate, which hides `evolve` of the optimizer that it wraps.

python examples/with_accelerate.py
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from digits import network, parts, tell
from torch.nn import functional as F
from torch.utils.data import DataLoader

import evostep
from evostep.integrations import evolve, find_evolved


def main() -> None:
    """Train for some epochs, evolve after each, save and load."""
    train, for_evolution, _ = parts()
    net = network()
    accelerator = Accelerator(cpu=True)
    base = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
    strategy = evostep.OpenAIES(sigma=0.05, lr=0.03, population=16)
    model, optimizer, loader = accelerator.prepare(
        net, evostep.Evolved(base, strategy), DataLoader(train, 32, shuffle=True)
    )
    fitness = evostep.Fitness(
        accelerator.unwrap_model(model), DataLoader(for_evolution, 640), "worst-class-recall"
    )

    for _ in range(4):
        for inputs, targets in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
        evolve(optimizer, fitness, 5)

    folder = tempfile.mkdtemp()
    accelerator.save_state(folder)
    accelerator.load_state(folder)
    tell(find_evolved(optimizer).history)


if __name__ == "__main__":
    main()
