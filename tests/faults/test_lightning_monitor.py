"""Lightning: evolved in the last batch of an epoch, the monitored score is the saved weights'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evostep import Evolved, Fitness, OpenAIES

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
def test_evolved_in_the_last_batch_the_monitored_score_is_that_of_the_file(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    lightning.seed_everything(0, verbose=False)
    inputs = torch.randn(1024, 10)
    targets = (inputs @ torch.randn(10, 3)).argmax(1)

    def loader(first: int, last: int) -> DataLoader[Any]:
        return DataLoader(TensorDataset(inputs[first:last], targets[first:last]), 64)

    class Network(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))

        def training_step(self, batch: Any, i: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, i: int) -> None:
            self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> Any:
            base = torch.optim.SGD(self.named_parameters(), lr=0.01)
            return Evolved(base, OpenAIES(0.1, lr=0.05, population=16))

        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.is_last_batch:
                self.optimizers().evolve(Fitness(self.net, loader(512, 768), "accuracy"), 3)

    model = Network()
    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path, monitor="val_acc", mode="max", save_top_k=1
    )
    lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, loader(0, 512), loader(768, 1024))
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    model.load_state_dict(saved["state_dict"])
    hits = (model.net(inputs[768:]).argmax(1) == targets[768:]).float().mean()
    assert float(checkpoint.best_model_score) == pytest.approx(float(hits), abs=1e-6)
