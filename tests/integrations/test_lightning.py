from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from evostep import Alternate, Evolved, Fitness
from evostep.integrations import evolve, find_evolved

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning", reason="needs evostep[lightning]")
    from evostep.integrations.lightning import Evolve

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, net: nn.Module, strategy: Any) -> None:
        super().__init__()
        self.net, self.strategy = net, strategy

    def training_step(self, batch: Any, i: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, i: int) -> None:
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        base = torch.optim.SGD(self.named_parameters(), lr=0.1, momentum=0.9)
        if self.strategy is None:
            return base
        optimizer = Evolved(base, self.strategy)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


@pytest.fixture
def train(make_network: Any, strategy: Any, digits: Any, tmp_path: Path) -> Any:
    def run(epochs: int, resume: Any = None, folder: str = "run", **options: Any) -> Any:
        batches = [other.tensors for other in [digits.other]]
        settings = {"strategy": strategy, **options}
        module = Module(make_network(), settings.pop("strategy"))
        of_trainer = {"accumulate_grad_batches": settings.pop("accumulate", 1)}
        callback = Evolve(lambda m: Fitness(m.net, batches, "neg-loss"), **settings)
        best = lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path / folder, monitor="val_acc", mode="max", save_last=True
        )
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[callback, best],
            logger=lightning.pytorch.loggers.CSVLogger(tmp_path / folder),
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            **of_trainer,
        )
        trainer.fit(
            module, DataLoader(digits.train, 32), DataLoader(digits.valid, 200), ckpt_path=resume
        )
        return module, trainer, best

    return run


def test_twenty_steps_and_twenty_are_forty(train: Any, watch: Any, same: Any) -> None:
    options = {"generations": 3, "trackers": [watch]}
    whole, trainer, _ = train(4, **options)
    assert trainer.global_step == 40
    assert watch.moved > 0
    assert watch.calls == ["begin", *(f"phase {n}" for n in (10, 20, 30, 40)), "close"]
    _, _, checkpoint = train(2, folder="half", generations=3)
    again, other, _ = train(4, checkpoint.last_model_path, "rest", generations=3)
    same(whole.state_dict(), again.state_dict())
    same(trainer.optimizers[0].state_dict(), other.optimizers[0].state_dict())


def test_the_monitored_score_is_that_of_the_file(train: Any, digits: Any, tmp_path: Path) -> None:
    module, _, best = train(2, generations=3)
    saved = torch.load(best.best_model_path, weights_only=True)
    module.load_state_dict(saved["state_dict"])  # the usual key
    assert saved["optimizer_states"][0]["evolution"]["generation"] in (3, 6)
    inputs, targets = digits.valid.tensors
    hits = (module.net(inputs).argmax(1) == targets).float().mean()
    assert float(best.best_model_score) == pytest.approx(float(hits), abs=1e-6)
    assert "evolution/parent" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_after_steps_of_the_optimizer_each_counted_once(train: Any, watch: Any) -> None:
    """With two batches to a step there are five steps in an epoch."""
    options = {"accumulate": 2, "every_steps": 2, "trackers": [watch]}
    train(2, generations=Alternate(gradient=2, evolution=1), **options)
    assert watch.calls == ["begin", "phase 4", "phase 8", "close"]


def test_no_evolved_optimizer_is_told_before_training(train: Any) -> None:
    with pytest.raises(ValueError, match=r"SGD holds no evostep.Evolved: wrap the optimizer"):
        train(1, strategy=None)


def test_fabric(make_network: Any, strategy: Any, digits: Any, tmp_path: Path, same: Any) -> None:
    """Its optimizer has the class of what is inside; evolution is that one's."""
    batches = DataLoader(digits.train, 32)

    def begin() -> Any:
        net = make_network()
        fabric = lightning.Fabric(accelerator="cpu")
        base = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
        return fabric, net, *fabric.setup(net, Evolved(base, strategy))

    def go_on(fabric: Any, net: Any, model: Any, optimizer: Any, epochs: int) -> None:
        fitness = Fitness(net, [digits.other.tensors], "neg-loss")
        for _ in range(epochs):
            for inputs, targets in batches:
                optimizer.zero_grad()
                fabric.backward(nn.functional.cross_entropy(model(inputs), targets))
                optimizer.step()
            before = net[0].weight.clone()
            assert any(record.moved for record in evolve(optimizer, fitness, 3))
            assert not torch.equal(net[0].weight, before)

    whole, half, rest = begin(), begin(), begin()
    go_on(*whole, 4)
    go_on(*half, 2)
    half[0].save(tmp_path / "it", {"model": half[2], "optimizer": half[3]})
    rest[0].load(tmp_path / "it", {"model": rest[2], "optimizer": rest[3]})
    go_on(*rest, 2)
    same(whole[1].state_dict(), rest[1].state_dict())
    assert find_evolved(rest[3]).evolution.generation == 12
