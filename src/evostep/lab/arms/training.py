"""Gradient descent: the base optimizer, its batches, and one epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.errors import needs_package
from evostep.genome.slots import slots_of_module
from evostep.lab.arms.arm import Training
from evostep.lab.data.images import ImageData, augment
from evostep.lab.data.parts import Part
from evostep.noise import derive_seed, make_generator
from evostep.scoring.isolation import preserved_rng, seed_everything
from evostep.scoring.metrics import accuracy
from evostep.spaces.weights import Only

PER_GRADIENT_EXAMPLE = 3  # sample-forwards: one forward, and a backward that counts as two


def make_optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """Make the base optimizer, with the names of the parameters that gradients are to move."""
    named = list(model.named_parameters())
    if training.only:
        chosen = {*moved_alone(training.only).touched(slots_of_module(model))}
        named = [(name, parameter) for name, parameter in named if name in chosen]
    settings: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay}
    kind: type[torch.optim.Optimizer]
    if training.optimizer == "sgd":
        kind, settings["momentum"] = torch.optim.SGD, training.momentum
    else:
        kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
        settings["betas"] = (training.momentum, 0.999)
    if not training.sharpness:
        return kind(named, **settings)
    sam: torch.optim.Optimizer = import_sam()(named, kind, rho=training.sharpness, **settings)
    return sam


def moved_alone(patterns: str) -> Only:
    """Return what gradients move where ``--train-only`` says so.

    Example:
        >>> moved_alone("head, norm")
        Only('head', 'norm')
    """
    return Only(*(part for one in patterns.split(",") if (part := one.strip())))


def import_sam() -> Any:
    """Return the class of sharpness-aware minimization, which other arms can spare.

    Raises:
        InputError: the package is not there.
    """
    try:
        from pytorch_optimizer import SAM
    except ImportError as error:
        raise needs_package("sam", "pytorch_optimizer", "pytorch-optimizer", error) from error
    return SAM


def cosine(lr: float, done: float) -> float:
    """Return the learning rate where a share of the run is done: it falls from `lr` to 0.

    lr (1 + cos(pi done)) / 2: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5,
    without restarts.

    Args:
        lr: at the beginning.
        done: share of the run; below 0 it is 0, past 1 it is 1.

    Example:
        >>> cosine(0.1, 0.0), cosine(0.1, 0.5), cosine(0.1, 1.0)
        (0.1, 0.05, 0.0)
    """
    return lr * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2


def batches_of(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Return shuffled indices in equal batches of at most `size`, none of a single one.

    A small batch at the end of each epoch would be a kick: its gradient and its BatchNorm
    statistics are noisy, and momentum carries them into the next epoch. (5,000 examples in batches
    of 64 leave 8: six steps later resnet18 had lost 3 and 8 points of held-out accuracy.)
    """
    order = torch.randperm(n, generator=generator)
    return iter(order.tensor_split(max(1, min(math.ceil(n / size), n // 2))))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    part: Part,
    data: ImageData,
    training: Training,
    *,
    seed: int,
    epoch: int,
    max_forwards: int | None,
    on_step: Callable[[int], None],
    rate: Callable[[int], float] | None = None,
) -> tuple[dict[str, float], int]:
    """Train for one epoch, or up to the first step that reaches `max_forwards` or diverges.

    It diverges where the loss is not finite; then the mean loss is neither.

    The order of the examples, their augmentation and the model's own randomness (dropout) are a
    pure function of (seed, epoch), so that a resumed run sees what the first one saw.

    Args:
        model: is trained, in place.
        optimizer: of its weights.
        part: the examples.
        data: tells how images are normalised.
        training: batch size and augmentation.
        seed: of the run.
        epoch: counted from 0.
        max_forwards: sample-forwards after which the epoch ends early; None: it does not.
        on_step: called with the sample-forwards of each step.
        rate: the learning rate after so many sample-forwards of this epoch; None: as it stands.

    Returns:
        Accuracy and loss as measured on the way, and the sample-forwards spent.
    """
    device = part.targets.device
    generator = make_generator(derive_seed(seed, epoch, "order of examples"))
    forwards, right, lost, seen = 0, 0.0, 0.0, 0
    model.train()
    with preserved_rng():
        seed_everything(derive_seed(seed, epoch, "training"))
        for indices in batches_of(len(part), training.batch, generator):
            images = data.normalise(part.images[indices.to(device)])
            images = augment(images, generator, kind=training.augment)
            targets = part.targets[indices.to(device)]
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate(forwards)
            outputs = model(images)
            loss = F.cross_entropy(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            if training.sharpness:
                optimizer.step(partial(_again, model, images, targets))
            else:
                optimizer.step()
            cost = PER_GRADIENT_EXAMPLE * training.passes * len(targets)
            forwards += cost
            seen += len(targets)
            lost += float(loss.detach()) * len(targets)
            right += float(accuracy(outputs.detach(), targets).sum())
            on_step(cost)
            if not math.isfinite(lost) or (max_forwards is not None and forwards >= max_forwards):
                break
    return {"accuracy": right / seen, "loss": lost / seen}, forwards


def _again(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Take the gradient where SAM has moved the weights to; BatchNorm statistics stay as they are.

    They are of the weights that the model keeps, not of those that it visits.
    """
    kept = [buffer.clone() for buffer in model.buffers()]
    loss = F.cross_entropy(model(images), targets)
    loss.backward()
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), kept, strict=True):
            buffer.copy_(before)
    return float(loss.detach())
