"""Spaces whose coordinates are the weights themselves: all of them, or some."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from evostep.genome.members import stack_members, write_member
from evostep.genome.point import Coordinates, Genome, Tensors, as_coordinates
from evostep.genome.slots import Slots
from evostep.spaces.base import Space, check_movable

Precision = Literal["weights", "float32"]

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
    frozen: bool
    precision: Precision

    @property
    def precise(self) -> bool:  # type: ignore[override]
        """Whether coordinates are float32 where the weights have 16 bits."""
        return self.precision == "float32"

    def open(self, slots: Slots) -> Genome:
        live = slots.live
        names = self.touched(slots)
        center = {name: as_coordinates(live[name].detach()).clone() for name in names}
        if self.precise:
            center = {name: z.to(_at_least_float32(z.dtype)) for name, z in center.items()}
        sigma = {name: slots.sigma.get(name) for name in names}
        fixed = {name: slots.fixed[name] for name in names if name in slots.fixed}
        return Genome(center, sigma, fixed=fixed)

    def decode(self, coordinates: Coordinates, name: str) -> Tensor:
        return coordinates.tensor(name)

    def write(self, coordinates: Coordinates, name: str, out: Tensor) -> None:
        write_member(coordinates, name, as_coordinates(out))

    def stack(self, members: Sequence[Coordinates], names: Iterable[str]) -> dict[str, Tensor]:
        return stack_members(members, names)

    def settle(
        self, coordinates: Coordinates, genome: Genome, live: Mapping[str, Tensor]
    ) -> Coordinates:
        if self.precise:  # the weights are only its rounding
            return super().settle(coordinates, genome, live)
        # what was scored, to the bit, and no noise to draw again
        return Tensors({name: as_coordinates(tensor) for name, tensor in live.items()})

    def _check(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True, repr=False)
class AllWeights(_Weights):
    """Every parameter that the optimizer (or the model) holds, as far as gradients would move it.

    Args:
        frozen: whether parameters with ``requires_grad=False`` move, too.
        precision: ``"weights"``: coordinates have the weights' own type. ``"float32"``: a center in
            float32 is kept, of which weights of 16 bits are the rounding, so that steps below
            their precision add up; it takes 4 bytes a weight, between phases and in the saved
            state, too.

    Raises:
        ValueError: another precision; later, when it meets the weights, none that may move.

    Example:
        >>> import torch
        >>> from evostep.genome.slots import slots_of_module
        >>> AllWeights().touched(slots_of_module(torch.nn.Linear(3, 1)))
        ('weight', 'bias')
    """

    frozen: bool = False
    precision: Precision = "weights"

    def __post_init__(self) -> None:
        self._check()

    def __repr__(self) -> str:
        return f"AllWeights({', '.join(_settings(self))})"

    def touched(self, slots: Slots) -> tuple[str, ...]:
        """Return the names of all parameters that may move."""
        return check_movable(slots.movable(frozen=self.frozen), slots, "AllWeights(frozen=True)")


def _settings(space: _Weights) -> list[str]:
    """Return the keywords with which a space was made, but for the defaults."""
    parts = ["frozen=True"] if space.frozen else []
    return parts + ([f"precision={space.precision!r}"] if space.precise else [])


class Only(_Weights):
    """Parameters chosen by name or by the type of their module.

    Args:
        *patterns: globs over names (``"layer4.*"``), module paths (``"layer4"`` is short for
            ``"layer4.*"``) or names of module types (``"BatchNorm2d"``); a pattern that none of
            these matches may be a part of a path (``"lora_A"``). Tied weights are known by each of
            their names. Or an alias: ``"head"``, the layer that makes the outputs which a `Fitness`
            scores, found by sending one batch forward; where none is at hand, as the model says
            (``get_output_embeddings()``, ``get_classifier()``, a layer's name), else the last
            linear layer (the last convolution where there is none) but for auxiliary classifiers
            (``aux...``); ``"norm"``, every normalisation layer; ``"trainable"``, what has
            ``requires_grad``.
        types: module types whose own parameters are chosen, e.g. ``(nn.BatchNorm2d,)``.
        buffers: whether floating-point buffers that match may move, too: scales of a quantised
            network, thresholds; what no gradient reaches. Needs a model.
        frozen: see `AllWeights`.
        precision: see `AllWeights`.

    Raises:
        ValueError: no pattern and no type, another precision; later, when it meets the weights, a
            pattern or type that matches nothing (the message lists near names), or nothing that
            may move.

    Example:
        >>> import torch
        >>> from evostep.genome.slots import slots_of_module
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> Only("head").touched(slots_of_module(model))
        ('1.weight', '1.bias')
    """

    needs_names = True

    def __init__(
        self,
        *patterns: str,
        types: tuple[type[nn.Module], ...] = (),
        buffers: bool = False,
        frozen: bool = False,
        precision: Precision = "weights",
    ) -> None:
        if not patterns and not types:
            raise ValueError("Only() chooses nothing: give a pattern such as 'head', or types=")
        self.patterns = patterns
        self.needs_head = "head" in patterns
        self.needs_model = bool({"head", "norm"} & set(patterns) or types or buffers)
        self.types = tuple(types) if isinstance(types, tuple | list) else (types,)
        self.moves_buffers = buffers
        self.frozen = frozen
        self.precision = precision
        self._check()

    def __repr__(self) -> str:
        parts = [repr(pattern) for pattern in self.patterns]
        if self.types:
            parts.append(f"types=({', '.join(t.__name__ for t in self.types)},)")
        if self.moves_buffers:
            parts.append("buffers=True")
        parts += _settings(self)
        return f"Only({', '.join(parts)})"

    def touched(self, slots: Slots) -> tuple[str, ...]:
        """Return the names of the chosen tensors, in the model's order."""
        if self.moves_buffers and not slots.places:
            raise ValueError(f"{self!r} needs the model to find its buffers: pass model=")
        buffers = [name for name in slots.buffers if self.moves_buffers]
        pool = [*slots.tensors, *buffers]
        chosen: set[str] = set()
        for pattern in self.patterns:
            found = _match(pattern, pool, slots)
            if not found:
                raise ValueError(_nothing(pattern, pool, slots))
            chosen.update(found)
        for kind in self.types:
            if not slots.places:
                raise ValueError(f"{self!r} needs the model to know module types: pass model=")
            found = {place.name for place in slots.places if issubclass(place.kind, kind)}
            if not found & set(pool):
                present = sorted({place.kind.__name__ for place in slots.places})
                raise ValueError(
                    f"no module of type {kind.__name__} holds what may evolve: "
                    f"there are {', '.join(present)}"
                )
            chosen |= found
        # a parameter may be chosen under the name of another one on its memory
        chosen |= {other for name in chosen for other in slots.sharing.alike(name)}
        movable = slots.movable(frozen=self.frozen)
        names = tuple(name for name in (*movable, *buffers) if name in chosen)
        return check_movable(
            slots.sharing.once(names), slots, f"{repr(self).removesuffix(')')}, frozen=True)"
        )


def _match(pattern: str, pool: list[str], slots: Slots) -> set[str]:
    """Return the names in the pool that a pattern chooses, by any of the places they stand in."""
    if pattern in _ALIASES and pattern not in pool:
        if pattern != "trainable" and not slots.places:
            raise ValueError(f"{pattern!r} needs the model to know module types: pass model=")
        return _ALIASES[pattern](slots) & set(pool)
    paths = [*((name, name) for name in pool), *((p.path, p.name) for p in slots.places)]

    def whose_path(*globs: str) -> set[str]:
        return {name for path, name in paths if any(fnmatchcase(path, one) for one in globs)}

    typed = {p.name for p in slots.places if fnmatchcase(p.kind.__name__, pattern)}
    found = (whose_path(pattern, f"{pattern}.*") | typed) & set(pool)
    return found or whose_path(f"*.{pattern}", f"*.{pattern}.*") & set(pool)


def _trainable(slots: Slots) -> set[str]:
    return {name for name, tensor in slots.tensors.items() if tensor.requires_grad}


def _norm(slots: Slots) -> set[str]:
    return {
        place.name
        for place in slots.places
        if issubclass(place.kind, _NORMS) or place.kind.__name__.endswith("Norm")
    }


def _head(slots: Slots) -> set[str]:
    """Return the layer that makes the outputs: as is known, else the last one defined."""
    if slots.head:
        return set(slots.head)
    layers = guess_heads(slots)
    return {other.name for other in slots.places if layers and other.module == layers[-1]}


def guess_heads(slots: Slots) -> list[str]:
    """Return the paths of the layers that may be the head, by their order of definition.

    Linear layers; where there are none, convolutions; where there are none, whatever holds a
    matrix. Auxiliary classifiers, such as ``aux_classifier`` and ``AuxLogits``, are left out.
    """
    main = [
        place
        for place in slots.places
        if place.name in slots.tensors
        and not any(part.startswith("aux") for part in place.path.lower().split("."))
    ]
    for kinds in (_HEADS[:2], _HEADS):
        found = [place.module for place in main if issubclass(place.kind, kinds)]
        if found:
            return list(dict.fromkeys(found))
    return list(dict.fromkeys(place.module for place in main if place.tensor.dim() > 1))


_ALIASES = {"head": _head, "norm": _norm, "trainable": _trainable}


def _nothing(pattern: str, pool: list[str], slots: Slots) -> str:
    modules = {name.rpartition(".")[0] for name in pool} - {""}
    types = {place.kind.__name__ for place in slots.places}
    candidates = [*pool, *sorted(modules), *sorted(types)]
    near = difflib.get_close_matches(pattern.rstrip(".*"), candidates, n=4, cutoff=0.4)
    what = f"near it: {', '.join(near)}" if near else f"there are {', '.join(pool[:4])}, ..."
    return f"{pattern!r} matches no parameter; {what}"
