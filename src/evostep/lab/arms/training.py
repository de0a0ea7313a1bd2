"""Gradient descent for one epoch, and looking at a model: the plain parts of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.errors import InputError, reason
from evostep.lab.arms.arm import Training
from evostep.lab.arms.budget import PER_GRADIENT_EXAMPLE
from evostep.lab.data.images import ImageData, augment, channel_statistics
from evostep.lab.data.splits import Splits
from evostep.lab.options import Options
from evostep.noise import derive_seed, make_generator
from evostep.scoring.fitness import Fitness
from evostep.scoring.isolation import preserved_rng, seed_everything
from evostep.scoring.metrics import accuracy, make_metric

LOOK_BATCH = 500


@dataclass(frozen=True)
class Part:
    """Some examples of the data: images as they are stored, and their classes."""

    images: Tensor  # (n, channels, height, width) uint8
    targets: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.targets)

    def spread(self, n: int) -> Part:
        """Take `n` examples, evenly spaced: data may be sorted by class."""
        n = min(n, len(self))
        chosen = torch.arange(n, device=self.targets.device) * len(self) // max(n, 1)
        return Part(self.images[chosen], self.targets[chosen])

    def to(self, device: torch.device) -> Part:
        """Move to a device."""
        return Part(self.images.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Parts:
    """The data of one seed, cut into parts that do not overlap."""

    data: ImageData
    train: Part
    fitness: Part
    accept: Part
    test: Part

    def gradients(self, training: Training) -> Part:
        """What the gradients of an arm see."""
        if not training.all_data:
            return self.train
        parts = (self.train, self.fitness, self.accept)
        return Part(
            torch.cat([part.images for part in parts]), torch.cat([part.targets for part in parts])
        )


def cut(data: ImageData, splits: Splits, device: torch.device) -> Parts:
    """Cut the data as the splits say, and move it to the device.

    Images are normalised by the statistics of the training part alone.
    """
    mean, std = channel_statistics(data.inputs[splits.train])
    data = dataclasses.replace(data, mean=mean, std=std)

    def take(indices: Tensor) -> Part:
        return Part(data.inputs[indices], data.targets[indices]).to(device)

    if splits.official_test:
        assert data.test_inputs is not None
        assert data.test_targets is not None
        test = Part(data.test_inputs[splits.test], data.test_targets[splits.test]).to(device)
    else:
        test = take(splits.test)
    return Parts(data, take(splits.train), take(splits.fitness), take(splits.accept), test)


def make_optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """Make the base optimizer, with the names of the parameters."""
    named = list(model.named_parameters())
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            named,
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
    adam = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return adam(
        named,
        lr=training.lr,
        betas=(training.momentum, 0.999),
        weight_decay=training.weight_decay,
    )


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
) -> tuple[dict[str, float], int]:
    """Train for one epoch, or up to the first step that reaches `max_forwards`.

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
        on_step: told the sample-forwards of each step.

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
            outputs = model(images)
            loss = F.cross_entropy(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cost = PER_GRADIENT_EXAMPLE * len(targets)
            forwards += cost
            seen += len(targets)
            lost += float(loss.detach()) * len(targets)
            right += float(accuracy(outputs.detach(), targets).sum())
            on_step(cost)
            if max_forwards is not None and forwards >= max_forwards:
                break
    return {"accuracy": right / seen, "loss": lost / seen}, forwards


def make_fitness(
    model: nn.Module,
    part: Part,
    data: ImageData,
    options: Options,
    calibration: list[tuple[Tensor, Tensor]] | None = None,
) -> Fitness:
    """Make the fitness of a part of the data: the reported metric."""
    return Fitness(
        model,
        evaluation_batches(part, data),
        resolve_metric(options.metric),
        higher_is_better=options.higher_is_better,
        calibration=calibration,
    )


def resolve_metric(name: str) -> object:
    """Return a metric by name, or what an import path names; a class is called without arguments.

    Raises:
        InputError: it cannot be imported, or made.
    """
    if ":" not in name:
        return name
    from evostep.lab.imports import load_attribute

    metric = load_attribute(name)
    if not isinstance(metric, type):
        return metric
    try:
        return metric()
    except Exception as error:  # a user's class may raise anything
        raise InputError(
            f"{name} cannot be made without arguments ({reason(error)}): name a metric that is "
            "made already, or a function on (outputs, targets)"
        ) from error


def evaluate(model: nn.Module, part: Part, data: ImageData, options: Options) -> dict[str, float]:
    """Measure accuracy, cross-entropy and the chosen metric in eval mode.

    Returns:
        ``{"accuracy", "loss", <metric>}``; a metric of which less is better comes negated, as
        evolution sees it. Empty where the part is.
    """
    if not len(part):
        return {}
    outputs = Fitness(model, evaluation_batches(part, data), "accuracy")
    logits = outputs.score(outputs.examples(), keep_outputs=True).outputs
    values = {
        "accuracy": float(accuracy(logits, part.targets).mean()),
        "loss": float(F.cross_entropy(logits, part.targets)),
    }
    if options.metric not in values:
        metric = make_metric(
            resolve_metric(options.metric), higher_is_better=options.higher_is_better
        )()
        metric.update(logits, part.targets)
        values[options.metric] = float(metric.compute()[0])
    return values


def evaluation_batches(part: Part, data: ImageData) -> list[tuple[Tensor, Tensor]]:
    """Return a part in batches, in its own order, images normalised."""
    return [
        (data.normalise(images), targets)
        for images, targets in zip(
            part.images.split(LOOK_BATCH), part.targets.split(LOOK_BATCH), strict=True
        )
    ]
