"""Evolution in Lightning's Trainer: an `Evolved` from `configure_optimizers`, and a callback.

    python examples/with_lightning.py

Gradients first, evolution in the last epochs; other examples decide what is kept. The data are in
`digits.py`, beside this file.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from digits import compare, halves, network, parts
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import evostep
from evostep.integrations.lightning import Evolve


class Digits(LightningModule):
    """A classifier as one writes it for Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        """Log the accuracy."""
        right = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_acc", right)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer that can evolve the weights that it trains."""
        base = torch.optim.SGD(self.named_parameters(), lr=0.1, momentum=0.9)
        strategy = evostep.OpenAIES(sigma=0.3, lr=0.36, population=16)
        return evostep.Evolved(base, strategy, model=self)


def fit(*callbacks: Any) -> tuple[Digits, Trainer]:
    """Train for eight epochs on the first part, validate on half of the second."""
    train, for_evolution, _ = parts()
    valid = halves(for_evolution)[1]
    model = Digits()
    trainer = Trainer(
        max_epochs=8,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
    )
    trainer.fit(model, DataLoader(train, 32, shuffle=True), DataLoader(valid, 320))
    return model, trainer


def main() -> None:
    """Train, evolve after late epochs, validate, save, load; compare with a run without."""
    _, for_evolution, third = parts()
    select, decide = halves(for_evolution)
    plain, _ = fit()
    found = evostep.suggest_sigma(plain.net, DataLoader(select, 320))
    print(f"noise changes 5% of its predictions at sigma = {found.sigma:.2f}")

    evolve = Evolve(
        lambda module: evostep.Fitness(module.net, DataLoader(select, 320), "worst-class-recall"),
        evostep.Alternate(evolution=5, start=4),  # five generations after each epoch from the fifth
        accept_on=lambda module: evostep.Fitness(
            module.net, DataLoader(decide, 320), "worst-class-recall"
        ),
    )
    best = ModelCheckpoint(tempfile.mkdtemp(), monitor="val_acc", mode="max")
    model, trainer = fit(evolve, best)
    saved = torch.load(best.best_model_path, weights_only=True)
    model.load_state_dict(saved["state_dict"])
    inputs, targets = decide.tensors
    accuracy = (model.net(inputs).argmax(1) == targets).float().mean()
    print(f"val_acc {best.best_model_score:.4f} was told, the saved file has {accuracy:.4f}")
    compare(trainer.optimizers[0].history, model.net, plain.net, third)


if __name__ == "__main__":
    main()
