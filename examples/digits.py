"""Real digits in three parts, and what the examples of frameworks tell at their end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import evostep


def parts() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Return 640 digits to train on, 640 for evolution, 517 to validate on; pixels in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.as_tensor(pixels / 16, dtype=torch.float32)[order]
    y = torch.as_tensor(labels)[order]
    cuts = [slice(0, 640), slice(640, 1280), slice(1280, None)]
    first, second, third = (TensorDataset(x[cut], y[cut]) for cut in cuts)
    return first, second, third


def halves(part: TensorDataset) -> tuple[TensorDataset, TensorDataset]:
    """Return one half for evolution to select on, and one that decides what is kept."""
    x, y = part.tensors
    middle = len(x) // 2
    return TensorDataset(x[:middle], y[:middle]), TensorDataset(x[middle:], y[middle:])


def network() -> nn.Sequential:
    """Return a small network, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def compare(
    history: Sequence[evostep.Record],
    evolved: nn.Module,
    plain: nn.Module,
    unseen: TensorDataset,
    metric: str = "worst-class-recall",
) -> None:
    """Print what evolution came to on digits that neither it nor a gradient has seen."""
    moved = sum(record.moved for record in history)
    print(f"evolution moved the weights in {moved} of {len(history)} generations")
    scores = [evostep.Fitness(net, [unseen.tensors], metric)() for net in (evolved, plain)]
    print(f"{metric} on digits that nobody saw: {scores[0]:.4f} with it, {scores[1]:.4f} without")


def tell(history: Sequence[evostep.Record], metric: str = "worst-class recall") -> None:
    """Print how often evolution moved the weights, and what the metric was before and after."""
    moved = sum(record.moved for record in history)
    first, last = history[0].parent, history[-1]
    end = last.candidate if last.accepted and last.candidate is not None else last.parent
    print(f"evolution moved the weights in {moved} of {len(history)} generations")
    print(f"{metric} on its examples: {first:.4f} -> {end:.4f}, gradient steps included")
