"""Evolution in skorch: a callback, and a function in the place of the optimizer's class.

    python examples/with_skorch.py

Gradients first, evolution in the last epochs; other examples decide what is kept. The data are in
`digits.py`, beside this file.
"""

from __future__ import annotations

from typing import Any

import torch
from digits import compare, halves, network, parts
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader

import evostep
from evostep.integrations.skorch import Evolve, evolved


def fit(callbacks: list[Any]) -> NeuralNetClassifier:
    """Fit a net for eight epochs."""
    strategy = evostep.OpenAIES(sigma=0.3, lr=0.36, population=16)
    optimizer = evolved(torch.optim.SGD, strategy)
    net = NeuralNetClassifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=optimizer,
        optimizer__momentum=0.9,
        lr=0.1,
        max_epochs=8,
        batch_size=32,
        callbacks=callbacks,
        verbose=0,
    )
    train, _, _ = parts()
    return net.fit(*(part.numpy() for part in train.tensors))


def main() -> None:
    """Fit a net with evolution and one without, and compare."""
    _, for_evolution, third = parts()
    select, decide = (DataLoader(part, 320) for part in halves(for_evolution))
    evolve = Evolve(
        lambda module: evostep.Fitness(module, select, "worst-class-recall"),
        evostep.Alternate(evolution=5, start=4),
        accept_on=lambda module: evostep.Fitness(module, decide, "worst-class-recall"),
    )
    net, plain = fit([evolve]), fit([])
    compare(net.optimizer_.history, net.module_, plain.module_, third)


if __name__ == "__main__":
    main()
