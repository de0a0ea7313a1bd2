"""Evolution in a loop with timm: its optimizers, its schedulers, an average of the weights beside.

python examples/with_timm.py
"""

from __future__ import annotations

import tempfile

import timm
import torch
from digits import parts, tell
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import evostep


def main() -> None:
    """Train a small vision transformer, evolve its head, keep an average, save."""
    train, for_evolution, _ = (as_images(part) for part in parts())
    torch.manual_seed(0)
    small = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_heads=4, num_classes=10, **small)
    base = create_optimizer_v2(model, opt="adamw", lr=0.003, weight_decay=0.05)
    strategy = evostep.OpenAIES(sigma=0.05, lr=0.03, population=16)
    optimizer = evostep.Evolved(base, strategy, space=evostep.Only("head"), model=model)
    scheduler = CosineLRScheduler(optimizer, t_initial=4, warmup_t=1, warmup_lr_init=0.001)
    average = ModelEmaV3(model, decay=0.9)
    fitness = evostep.Fitness(model, DataLoader(for_evolution, 640), "worst-class-recall")
    saver = CheckpointSaver(model, optimizer, model_ema=average, checkpoint_dir=tempfile.mkdtemp())

    for epoch in range(4):
        for inputs, targets in DataLoader(train, 32, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            average.update(model)
        scheduler.step(epoch + 1)
        optimizer.evolve(fitness, 3)
        average.update(model)  # takes what evolution found into the average, too
        saver.save_checkpoint(epoch, metric=fitness())
    tell(optimizer.history)


def as_images(part: TensorDataset) -> TensorDataset:
    """Return the pixels as images of one channel, 8 x 8."""
    pixels, labels = part.tensors
    return TensorDataset(pixels.reshape(-1, 1, 8, 8), labels)


if __name__ == "__main__":
    main()
