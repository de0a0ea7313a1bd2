"""Evolution in Lightning's Trainer: an `Evolved` from `configure_optimizers`, and a callback.

python examples/with_lightning.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from digits import network, parts, tell
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
        return evostep.Evolved(base, evostep.OpenAIES(sigma=0.05, lr=0.03, population=16))


def main() -> None:
    """Train, evolve at the end of each epoch, validate, save; load the best."""
    train, for_evolution, valid = parts()
    model = Digits()
    batches = DataLoader(for_evolution, 640)
    evolve = Evolve(
        lambda module: evostep.Fitness(module.net, batches, "worst-class-recall"), generations=5
    )
    best = ModelCheckpoint(tempfile.mkdtemp(), monitor="val_acc", mode="max")
    trainer = Trainer(
        max_epochs=4,
        callbacks=[evolve, best],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(train, 32, shuffle=True), DataLoader(valid, 517))
    saved = torch.load(best.best_model_path, weights_only=True)
    model.load_state_dict(saved["state_dict"])
    inputs, targets = valid.tensors
    accuracy = (model.net(inputs).argmax(1) == targets).float().mean()
    print(f"val_acc {best.best_model_score:.4f} was told, the saved file has {accuracy:.4f}")
    tell(trainer.optimizers[0].history)


if __name__ == "__main__":
    main()
