"""Evolution in skorch: a callback, and a function in the place of the optimizer's class.

python examples/with_skorch.py
"""

from __future__ import annotations

import torch
from digits import network, parts, tell
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader

import evostep
from evostep.integrations.skorch import Evolve, evolved


def main() -> None:
    """Fit a net, the validation of each epoch after its evolution."""
    train, for_evolution, valid = parts()
    batches = DataLoader(for_evolution, 640)
    strategy = evostep.OpenAIES(sigma=0.05, lr=0.03, population=16)
    optimizer = evolved(torch.optim.SGD, strategy)
    net = NeuralNetClassifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=optimizer,
        optimizer__momentum=0.9,
        lr=0.1,
        max_epochs=4,
        batch_size=32,
        callbacks=[
            Evolve(lambda module: evostep.Fitness(module, batches, "worst-class-recall"), 5)
        ],
    )
    net.fit(*(part.numpy() for part in train.tensors))
    inputs, targets = valid.tensors
    print(f"accuracy on digits that nobody saw: {net.score(inputs.numpy(), targets.numpy()):.4f}")
    tell(net.optimizer_.history)


if __name__ == "__main__":
    main()
