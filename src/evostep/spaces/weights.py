"""Spaces whose coordinates are the weights themselves: all of them, or some."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from evostep.genome.members import stack_members, write_member
from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.genome.slots import Slots
from evostep.spaces.base import Space

_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)
_HEADS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


class _Weights(Space):
    """The identity: coordinates are weights."""

    holds_weights = True

    def open(self, slots: Slots) -> Genome:
        live = slots.live
        names = self.touched(slots)
        center = {name: live[name].detach().clone() for name in names}
        return Genome(center, {name: slots.sigma.get(name) for name in names})

    def decode(self, coordinates: Coordinates, name: str) -> Tensor:
        return coordinates.tensor(name)

    def write(self, coordinates: Coordinates, name: str, out: Tensor) -> None:
        write_member(coordinates, name, out)

    def stack(self, members: Sequence[Coordinates], names: Iterable[str]) -> dict[str, Tensor]:
        return stack_members(members, names)

    def settle(
        self, coordinates: Coordinates, genome: Genome, live: Mapping[str, Tensor]
    ) -> Coordinates:
        return Tensors(live)  # what was scored, to the bit, and no noise to draw again


@dataclass(frozen=True)
class AllWeights(_Weights):
    """Every parameter that the optimizer (or the model) holds.

    Example:
        >>> import torch
        >>> from evostep.genome.slots import slots_of_module
        >>> AllWeights().touched(slots_of_module(torch.nn.Linear(3, 1)))
        ('weight', 'bias')
    """

    def touched(self, slots: Slots) -> tuple[str, ...]:
        """Return the names of all parameters."""
        if not slots.tensors:
            raise ValueError("there is nothing to evolve: the model has no parameters")
        return tuple(slots.tensors)


class Only(_Weights):
    """Parameters chosen by name or by the type of their module.

    Args:
        *patterns: globs over names (``"layer4.*"``), module paths (``"layer4"`` is short for
            ``"layer4.*"``) or names of module types (``"BatchNorm2d"``); or an alias: ``"head"``,
            the last linear layer (the last convolution where there is none); ``"norm"``, every
            normalisation layer.
        types: module types whose own parameters are chosen, e.g. ``(nn.BatchNorm2d,)``.
        buffers: whether floating-point buffers that match may move, too: scales of a quantised
            network, thresholds; what no gradient reaches. Needs a model.

    Raises:
        ValueError: no pattern and no type; later, when it meets the weights, a pattern or type
            that matches nothing (the message lists near names).

    Example:
        >>> import torch
        >>> from evostep.genome.slots import slots_of_module
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> Only("head").touched(slots_of_module(model))
        ('1.weight', '1.bias')
    """

    needs_names = True

    def __init__(
        self, *patterns: str, types: tuple[type[nn.Module], ...] = (), buffers: bool = False
    ) -> None:
        if not patterns and not types:
            raise ValueError("Only() chooses nothing: give a pattern such as 'head', or types=")
        self.patterns = patterns
        self.types = tuple(types) if isinstance(types, tuple | list) else (types,)
        self.moves_buffers = buffers

    def __repr__(self) -> str:
        parts = [repr(pattern) for pattern in self.patterns]
        if self.types:
            parts.append(f"types=({', '.join(t.__name__ for t in self.types)},)")
        if self.moves_buffers:
            parts.append("buffers=True")
        return f"Only({', '.join(parts)})"

    def touched(self, slots: Slots) -> tuple[str, ...]:
        """Return the names of the chosen tensors, in the model's order."""
        if self.moves_buffers and not slots.owners:
            raise ValueError(f"{self!r} needs the model to find its buffers: pass model=")
        pool = [*slots.tensors, *(slots.buffers if self.moves_buffers else ())]
        chosen: set[str] = set()
        for pattern in self.patterns:
            found = _match(pattern, pool, slots)
            if not found:
                raise ValueError(_nothing(pattern, pool, slots))
            chosen.update(found)
        for kind in self.types:
            if not slots.owners:
                raise ValueError(f"{self!r} needs the model to know module types: pass model=")
            found = {name for name in pool if issubclass(slots.owners.get(name, object), kind)}
            if not found:
                present = sorted({t.__name__ for t in slots.owners.values()})
                raise ValueError(
                    f"no module of type {kind.__name__} holds what may evolve: "
                    f"there are {', '.join(present)}"
                )
            chosen |= found
        return tuple(name for name in pool if name in chosen)


def _match(pattern: str, pool: list[str], slots: Slots) -> set[str]:
    if pattern in ("head", "norm") and pattern not in pool:
        if not slots.owners:
            raise ValueError(f"{pattern!r} needs the model to know module types: pass model=")
        return _norm(pool, slots) if pattern == "norm" else _head(pool, slots)
    names = {name for name in pool if fnmatchcase(name, pattern)}
    inside = {name for name in pool if fnmatchcase(name, f"{pattern}.*")}
    typed = {
        name for name in pool if name in slots.owners and fnmatchcase(_type(name, slots), pattern)
    }
    return names | inside | typed


def _type(name: str, slots: Slots) -> str:
    return slots.owners[name].__name__


def _norm(pool: list[str], slots: Slots) -> set[str]:
    return {
        name
        for name in pool
        if issubclass(slots.owners.get(name, object), _NORMS) or _type(name, slots).endswith("Norm")
    }


def _head(pool: list[str], slots: Slots) -> set[str]:
    for kinds in (_HEADS[:2], _HEADS):
        for name in reversed(pool):
            if issubclass(slots.owners.get(name, object), kinds):
                path = name.rpartition(".")[0]
                return {other for other in pool if other.rpartition(".")[0] == path}
    return set()


def _nothing(pattern: str, pool: list[str], slots: Slots) -> str:
    modules = {name.rpartition(".")[0] for name in pool} - {""}
    types = {kind.__name__ for kind in slots.owners.values()}
    candidates = [*pool, *sorted(modules), *sorted(types)]
    near = difflib.get_close_matches(pattern.rstrip(".*"), candidates, n=4, cutoff=0.4)
    what = f"near it: {', '.join(near)}" if near else f"there are {', '.join(pool[:4])}, ..."
    return f"{pattern!r} matches no parameter; {what}"
