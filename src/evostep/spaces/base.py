"""What a space is: which weights may move, and in which coordinates.

A space turns weights into a `Genome`, a dictionary of named coordinate tensors, and coordinates
back into weights. Strategies see genomes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from evostep.naming import Slots

# A tensor that starts at zero (a bias, the last gain of a residual block) has no scale of its own;
# without a floor a relative sigma would never move it.
RMS_FLOOR = 0.01


class Coordinates(Protocol):
    """Yields coordinate tensors on demand: a member, or a stepped center."""

    def tensor(self, name: str) -> Tensor:
        """Give the coordinates called `name`; the caller must not change them."""


@dataclass(frozen=True)
class Tensors:
    """Coordinates that exist already, such as a center's."""

    values: Mapping[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        """Give the tensor itself."""
        return self.values[name]


@dataclass
class Genome:
    """Where the model stands, in coordinates.

    Attributes:
        center: name -> coordinates. Detached: the one copy from which weights are restored.
        sigma: name -> the standard deviation that replaces the strategy's there, in its unit; None
            where the strategy's holds; 0 for coordinates that must not move.
    """

    center: dict[str, Tensor]
    sigma: Mapping[str, float | None]
    _rms: dict[str, float] | None = field(default=None, repr=False)

    @property
    def rms(self) -> dict[str, float]:
        """Name -> root mean square of the center's tensor, at least `RMS_FLOOR`."""
        if self._rms is None:
            self._rms = root_mean_square(self.center)
        return self._rms

    @torch.no_grad()
    def move(self, coordinates: Coordinates) -> None:
        """Move the center, in place."""
        for name, tensor in self.center.items():
            tensor.copy_(coordinates.tensor(name))
        self._rms = None


def root_mean_square(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Give each tensor's root mean square, at least `RMS_FLOOR`, with one transfer to the host.

    Example:
        >>> root_mean_square({"w": torch.tensor([3.0, -3.0]), "b": torch.zeros(2)})
        {'w': 3.0, 'b': 0.01}
    """
    if not tensors:
        return {}
    squares = [tensor.detach().double().square().mean() for tensor in tensors.values()]
    device = squares[0].device
    values = torch.stack([square.to(device) for square in squares]).sqrt().tolist()
    return {name: max(value, RMS_FLOOR) for name, value in zip(tensors, values, strict=True)}


class Space(ABC):
    """Which weights may move, in which coordinates. Subclasses are frozen configuration.

    Attributes:
        needs_names: whether names of parameters are needed (positions do not do).
        moves_buffers: whether buffers may move, too.
    """

    needs_names: bool = False
    moves_buffers: bool = False

    @abstractmethod
    def touched(self, slots: Slots) -> tuple[str, ...]:
        """Give the names of the tensors that may move; raises ValueError where there are none."""

    @abstractmethod
    def open(self, slots: Slots) -> Genome:
        """Give the genome of the weights as they stand."""

    @abstractmethod
    def decode(self, coordinates: Coordinates, name: str) -> Tensor:
        """Give the weights called `name` at these coordinates; not to be changed by the caller."""

    def settle(
        self, coordinates: Coordinates, genome: Genome, live: Mapping[str, Tensor]
    ) -> Coordinates:
        """Give `coordinates` as tensors that moving the center does not change.

        Args:
            coordinates: a recipe, perhaps around `genome`'s center.
            genome: whose center is about to move there.
            live: the weights, which stand at `coordinates`.
        """
        return Tensors({name: coordinates.tensor(name).clone() for name in genome.center})
