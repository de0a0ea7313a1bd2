"""The parts of the data that a run works with: examples on the device, and how many there are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.lab.data.images import ImageData, normalisation
from evostep.lab.data.splits import Splits

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Part:
    """Some examples of the data: images as they are stored, and their classes."""

    images: Tensor  # (n, channels, height, width) uint8
    targets: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.targets)

    def spread(self, n: int) -> Part:
        """Return `n` of the examples, evenly spaced: data may be sorted by class."""
        n = min(n, len(self))
        chosen = torch.arange(n, device=self.targets.device) * len(self) // max(n, 1)
        return Part(self.images[chosen], self.targets[chosen])

    def first(self, n: int) -> Part:
        """Return the first `n` of the examples."""
        return Part(self.images[:n], self.targets[:n])

    def to(self, device: torch.device) -> Part:
        """Return the examples on a device."""
        return Part(self.images.to(device), self.targets.to(device))

    def batches(self, data: ImageData) -> list[tuple[Tensor, Tensor]]:
        """Return the examples in batches for scoring, in their own order, images normalised."""
        return [
            (data.normalise(images), targets)
            for images, targets in zip(
                self.images.split(EVALUATION_BATCH),
                self.targets.split(EVALUATION_BATCH),
                strict=True,
            )
        ]


@dataclass(frozen=True)
class Parts:
    """The data of one seed, cut into parts that do not overlap.

    `spare` are the indices of the examples that none of them holds, `(n,)` int64, on the CPU.
    """

    data: ImageData
    train: Part
    fitness: Part
    accept: Part
    test: Part
    spare: Tensor

    def take(self, indices: Tensor) -> Part:
        """Return examples of the data by their indices, on the device of the parts."""
        chosen = Part(self.data.inputs[indices], self.data.targets[indices])
        return chosen.to(self.train.targets.device)

    def gradients(self, all_data: bool) -> Part:
        """Return what gradients see: the training part, or all but the test part."""
        if not all_data:
            return self.train
        parts = (self.train, self.fitness, self.accept)
        return Part(
            torch.cat([part.images for part in parts]), torch.cat([part.targets for part in parts])
        )


@dataclass(frozen=True)
class Sizes:
    """How many examples each part has, how many estimate BatchNorm again, and what else costs.

    Attributes:
        train: examples.
        fitness: likewise.
        accept: likewise.
        test: likewise.
        calibration: training examples on which BatchNorm statistics are estimated again.
        classes: of the data.
        tunings: settings that the model's own `tune` tries at most.
        spare: examples that no part holds.
    """

    train: int
    fitness: int
    accept: int
    test: int
    calibration: int = 0
    classes: int = 0
    tunings: int = 0
    spare: int = 0

    def gradients(self, all_data: bool) -> int:
        """Return how many examples gradients see in an epoch: see `Parts.gradients`."""
        return self.train + (self.fitness + self.accept if all_data else 0)


def cut(data: ImageData, splits: Splits, device: torch.device) -> Parts:
    """Cut the data as the splits say, and move it to the device.

    Images are normalised by the statistics of the training part alone.
    """
    mean, std = normalisation(data.inputs[splits.train], data.targets)
    data = dataclasses.replace(data, mean=mean, std=std)

    def take(indices: Tensor) -> Part:
        return Part(data.inputs[indices], data.targets[indices]).to(device)

    if splits.official_test:
        assert data.test_inputs is not None
        assert data.test_targets is not None
        test = Part(data.test_inputs[splits.test], data.test_targets[splits.test]).to(device)
    else:
        test = take(splits.test)
    return Parts(
        data,
        take(splits.train),
        take(splits.fitness),
        take(splits.accept),
        test,
        spare_of(data, splits),
    )


def spare_of(data: ImageData, splits: Splits) -> Tensor:
    """Return the indices of examples that are in no part, nor in an official validation set."""
    spare = torch.ones(len(data.targets), dtype=torch.bool)
    spare[len(data.targets) - data.validation :] = False
    for used in (splits.train, splits.fitness, splits.accept):
        spare[used] = False
    if not splits.official_test:
        spare[splits.test] = False
    return spare.nonzero().flatten()
