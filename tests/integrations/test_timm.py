"""timm: its models, optimizers, schedulers, average and checkpoints beside evolution."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from evostep import Evolved, Fitness, Only

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    timm = pytest.importorskip("timm", reason="needs evostep[timm]")
    from timm.models import resume_checkpoint
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import CheckpointSaver, ModelEmaV3

pytestmark = pytest.mark.filterwarnings("ignore")


class Run:
    def __init__(self, strategy: Any, digits: Any) -> None:
        torch.manual_seed(0)
        small = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1}
        self.model = timm.create_model("vit_tiny_patch16_224", num_heads=2, num_classes=10, **small)
        base = create_optimizer_v2(self.model, opt="adamw", lr=0.01, weight_decay=0.05)
        self.optimizer = Evolved(base, strategy, space=Only("head"), model=self.model)
        self.scheduler = CosineLRScheduler(self.optimizer, t_initial=40, warmup_t=5)
        self.average = ModelEmaV3(self.model, decay=0.9)
        images = [(x.reshape(-1, 1, 8, 8), y) for x, y in (digits.train[:], digits.other[:])]
        (self.inputs, self.targets), other = images
        self.fitness = Fitness(self.model, [other], "neg-loss")
        self.moved: list[str] = []

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            at = slice(step % 10 * 32, step % 10 * 32 + 32)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.inputs[at]), self.targets[at]).backward()
            self.optimizer.step()
            self.scheduler.step_update(step + 1)
            self.scheduler.step(step + 1)
            if step % 10 == 9:
                before = {n: p.clone() for n, p in self.model.named_parameters()}
                self.optimizer.evolve(self.fitness, 3)
                self.moved += [
                    n for n, p in self.model.named_parameters() if not torch.equal(p, before[n])
                ]
            self.average.update(self.model)

    def save(self, folder: Path) -> str:
        saver = CheckpointSaver(
            self.model, self.optimizer, model_ema=self.average, checkpoint_dir=str(folder)
        )
        saver.save_checkpoint(1, metric=self.fitness())
        return str(folder / "last.pth.tar")

    def load(self, path: str) -> None:
        resume_checkpoint(self.model, path, optimizer=self.optimizer)
        self.average.module.load_state_dict(torch.load(path, weights_only=False)["state_dict_ema"])


def test_twenty_steps_and_twenty_are_forty(
    strategy: Any, digits: Any, same: Any, tmp_path: Path
) -> None:
    whole, half, rest = (Run(strategy, digits) for _ in range(3))
    whole.steps(0, 40)
    assert {*whole.moved} == {"head.weight", "head.bias"}
    half.steps(0, 20)
    rest.load(half.save(tmp_path))
    rest.steps(20, 40)
    for name in ("model", "optimizer", "average"):
        same(getattr(whole, name).state_dict(), getattr(rest, name).state_dict())


def test_the_average_stays_until_it_is_updated(strategy: Any, digits: Any) -> None:
    run = Run(strategy, digits)
    run.steps(0, 3)
    before = {n: p.clone() for n, p in run.average.module.named_parameters()}
    run.optimizer.evolve(run.fitness, 4)
    assert all(torch.equal(p, before[n]) for n, p in run.average.module.named_parameters())
    run.average.update(run.model)
    after = dict(run.average.module.named_parameters())
    assert not torch.equal(after["head.weight"], before["head.weight"])
