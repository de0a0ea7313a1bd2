"""The two tasks that every method gets: a model, its examples, a population."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]  # inputs, targets


@dataclass(frozen=True)
class Task:
    """What one generation works on.

    Attributes:
        model: in eval mode; where the center begins.
        batches: all examples, in batches of one size.
        population: members in a generation, the parent not counted.
        threads: that the method may use.
        threads_each: for methods that score one network after the other. An operation of the small
            network is over before a second thread has begun: sharing it takes longer.
        sigma: of the noise.
        lr: of the step.
    """

    model: nn.Module
    batches: list[Batch]
    population: int
    threads: int
    threads_each: int
    sigma: float = 0.02
    lr: float = 0.004


def make_task(case: str, population: int, threads: int) -> Task:
    torch.manual_seed(0)
    model, batches = {"resnet18": _resnet18, "mlp": _mlp}[case]()
    each = 1 if case == "mlp" else threads
    return Task(model.eval(), batches, population, threads, each)


def _resnet18() -> tuple[nn.Module, list[Batch]]:
    from torchvision.models import resnet18

    model = resnet18(num_classes=10)
    batches = [(torch.randn(500, 3, 32, 32), torch.randint(10, (500,))) for _ in range(2)]
    return model, batches


def _mlp() -> tuple[nn.Module, list[Batch]]:
    from sklearn.datasets import load_digits

    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images[:300] / 16, dtype=torch.float32)
    return model, [(inputs, torch.tensor(labels[:300]))]


@torch.no_grad()
def infer(task: Task, passes: int = 1) -> None:
    """Run plain inference of one network on all examples, `passes` times."""
    for _ in range(passes):
        for inputs, _ in task.batches:
            task.model(inputs)


@torch.no_grad()
def score(model: nn.Module, batches: list[Batch]) -> float:
    """Return minus the mean cross-entropy, for methods that leave scoring to their caller."""
    losses = [F.cross_entropy(model(inputs), targets) for inputs, targets in batches]
    return -float(torch.stack(losses).mean())
