"""What a space is: which weights may move, and in which coordinates.

A space turns weights into a `Genome`, a dictionary of named coordinate tensors, and coordinates
back into weights. Strategies see genomes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.genome.slots import Slots, is_frozen

State = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Weights that the run passed through.

    Attributes:
        number: how many `remember` calls there had been, this one included; 0 if a user passed it.
        weights: name -> tensor, in host memory; not to be changed.
    """

    number: int
    weights: Mapping[str, Tensor]


class Space(ABC):
    """Which weights may move, in which coordinates. Subclasses are frozen configuration.

    Attributes:
        needs_names: whether names of parameters are needed (positions do not do).
        needs_head: whether it matters which layer makes the outputs.
        needs_model: whether types of modules, or buffers, are needed, which names do not tell.
        moves_buffers: whether buffers may move, too.
        memory: how many of the run's checkpoints it mixes; 0: `remember` has no effect.
        holds_weights: whether coordinates are the weights themselves.
        precise: whether coordinates are float32 where the weights have 16 bits.
    """

    needs_names: bool = False
    needs_head: bool = False
    needs_model: bool = False
    moves_buffers: bool = False
    memory: int = 0
    holds_weights: bool = False
    precise: bool = False

    def enter(
        self, slots: Slots, remembered: Sequence[Checkpoint], saved: State | None = None
    ) -> Space:
        """Return the space as it stands for one phase; most are the same for all.

        Args:
            slots: the live tensors.
            remembered: the run's checkpoints, oldest first.
            saved: what `state` returned in the middle of this phase, to go on with it.
        """
        return self

    @property
    def layout(self) -> int | None:
        """What the coordinates mean, as a number; a strategy starts anew where it changes."""
        return None

    def state(self, genome: Genome) -> State | None:
        """Return what `enter` needs to go on in the middle of a phase, the weights excepted."""
        return None

    def starts(self, genome: Genome) -> dict[str, Coordinates]:
        """Return other points than where the weights stand at which a phase may begin, by name."""
        return {}

    @abstractmethod
    def touched(self, slots: Slots) -> tuple[str, ...]:
        """Return the names of the tensors that may move; raises ValueError where there are none."""

    @abstractmethod
    def open(self, slots: Slots) -> Genome:
        """Return the genome of the weights as they stand."""

    @abstractmethod
    def decode(self, coordinates: Coordinates, name: str) -> Tensor:
        """Return the weights called `name` at these coordinates: to be read, not changed."""

    def write(self, coordinates: Coordinates, name: str, out: Tensor) -> None:
        """Write the weights called `name` at these coordinates into `out`."""
        out.copy_(self.decode(coordinates, name))

    def stack(self, members: Sequence[Coordinates], names: Iterable[str]) -> dict[str, Tensor]:
        """Return the weights of all members: name -> (n, ...)."""
        return {
            name: torch.stack([self.decode(member, name) for member in members]) for name in names
        }

    def settle(
        self, coordinates: Coordinates, genome: Genome, live: Mapping[str, Tensor]
    ) -> Coordinates:
        """Return `coordinates` as tensors that moving the center does not change.

        Args:
            coordinates: a recipe, perhaps around `genome`'s center.
            genome: whose center is about to move there.
            live: the weights, which stand at `coordinates`.
        """
        return Tensors({name: coordinates.tensor(name).clone() for name in genome.center})


def check_numbers(names: Iterable[str], slots: Slots) -> None:
    """Raise ValueError where a tensor that would move is on the device meta, and has no values."""
    live = slots.live
    without = next((name for name in names if live[name].is_meta), None)
    if without is not None:
        raise InputError(
            f"{without!r} is on the device meta and holds no numbers that could evolve: load the "
            "model whole (to_empty(device=...), then its weights), or leave it out by Only(...)"
        )


def check_movable(names: tuple[str, ...], slots: Slots, what: str) -> tuple[str, ...]:
    """Return the names; raise ValueError where there are none, with the reason.

    Args:
        names: of what may move.
        slots: the live tensors.
        what: the space that would move frozen weights, too.
    """
    if names:
        return names
    frozen = sum(map(is_frozen, slots.tensors.values()))
    if frozen:
        raise ValueError(
            f"there is nothing to evolve: {frozen} of {len(slots.tensors)} parameters have "
            f"requires_grad=False and stand still: take {what}, or set requires_grad"
        )
    if slots.outside:
        raise ValueError(
            "the fitness scores a model that holds none of the tensors that evolve: make "
            "it with the model that is trained, not with a copy"
        )
    raise ValueError("there is nothing to evolve: the model has no parameters")
