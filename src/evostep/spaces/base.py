"""What a space is: which weights may move, and in which coordinates.

A space turns weights into a `Genome`, a dictionary of named coordinate tensors, and coordinates
back into weights. Strategies see genomes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from evostep.naming import Slots

State = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Weights that the run passed through.

    Attributes:
        number: how many `remember` calls there had been, this one included; 0 if a user gave it.
        weights: name -> tensor, in host memory; not to be changed.
    """

    number: int
    weights: Mapping[str, Tensor]


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
        guides: directions that are likely to matter, each name -> a tensor of the center's shape
            (a name that is missing: zeros); gradients, of whatever length.
    """

    center: dict[str, Tensor]
    sigma: Mapping[str, float | None]
    _rms: dict[str, float] | None = field(default=None, repr=False)
    guides: tuple[Mapping[str, Tensor], ...] = ()
    _gram: dict[str, Tensor] | None = field(default=None, repr=False)

    @property
    def rms(self) -> dict[str, float]:
        """Name -> root mean square of the center's tensor, at least `RMS_FLOOR`."""
        if self._rms is None:
            self._rms = root_mean_square(self.center)
        return self._rms

    @property
    def gram(self) -> dict[str, Tensor]:
        """Name -> (k, k) float64, the inner products of the k guides' tensors of that name."""
        if self._gram is None:
            self._gram = {name: inner_products(self.guides, name) for name in self.center}
        return self._gram

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


def inner_products(directions: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """Give the inner products of the tensors called `name`, (k, k) float64 on the host.

    Example:
        >>> inner_products([{"w": torch.ones(4)}, {}], "w").tolist()
        [[4.0, 0.0], [0.0, 0.0]]
    """
    products = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for i, one in enumerate(directions):
        if name not in one:
            continue
        vector = one[name].detach().double().flatten()
        for j, other in enumerate(directions[: i + 1]):
            if name in other:
                products[i, j] = vector @ other[name].detach().double().flatten()
                products[j, i] = products[i, j]
    return products


class Space(ABC):
    """Which weights may move, in which coordinates. Subclasses are frozen configuration.

    Attributes:
        needs_names: whether names of parameters are needed (positions do not do).
        moves_buffers: whether buffers may move, too.
        memory: how many of the run's checkpoints it mixes; 0: `remember` has no effect.
        holds_weights: whether coordinates are the weights themselves.
    """

    needs_names: bool = False
    moves_buffers: bool = False
    memory: int = 0
    holds_weights: bool = False

    def enter(
        self, slots: Slots, remembered: Sequence[Checkpoint], saved: State | None = None
    ) -> Space:
        """Give the space as it stands for one phase; most are the same for all.

        Args:
            slots: the live tensors.
            remembered: the run's checkpoints, oldest first.
            saved: what `state` gave in the middle of this phase, to go on with it.
        """
        return self

    @property
    def layout(self) -> int | None:
        """What the coordinates mean, as a number; a strategy starts anew where it changes."""
        return None

    def state(self, genome: Genome) -> State | None:
        """Give what `enter` needs to go on in the middle of a phase, the weights excepted."""
        return None

    def starts(self, genome: Genome) -> dict[str, Coordinates]:
        """Give other points than where the weights stand at which a phase may begin, by name."""
        return {}

    @abstractmethod
    def touched(self, slots: Slots) -> tuple[str, ...]:
        """Give the names of the tensors that may move; raises ValueError where there are none."""

    @abstractmethod
    def open(self, slots: Slots) -> Genome:
        """Give the genome of the weights as they stand."""

    @abstractmethod
    def decode(self, coordinates: Coordinates, name: str) -> Tensor:
        """Give the weights called `name` at these coordinates; not to be changed by the caller."""

    def write(self, coordinates: Coordinates, name: str, out: Tensor) -> None:
        """Write the weights called `name` at these coordinates into `out`."""
        out.copy_(self.decode(coordinates, name))

    def stack(self, members: Sequence[Coordinates], names: Iterable[str]) -> dict[str, Tensor]:
        """Give the weights of all members: name -> (n, ...)."""
        return {
            name: torch.stack([self.decode(member, name) for member in members]) for name in names
        }

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
