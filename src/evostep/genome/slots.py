"""The tensors that may evolve, by name, and what is known of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError
from evostep.genome.anatomy import (
    Place,
    clean_names,
    declared_head,
    fixed_entries,
    module_names,
    places_of,
)
from evostep.genome.memory import Sharing, sharing_of

_MOVABLE = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
)


@dataclass
class Slots:
    """The live tensors that a space may move.

    Attributes:
        tensors: name -> the parameter itself (not a copy).
        buffers: name -> the floating-point buffer itself; empty where no model is known.
        sigma: name -> a parameter group's own sigma, or None.
        places: where the model holds them, in its order; empty where no model is known.
        named: False where names are mere positions (``"group0.3"``).
        chosen: whether a user chose each tensor by itself, in a dictionary.
        outside: names of the optimizer's tensors that the model, or the one scored, lacks.
        fixed: name -> bool, broadcastable to the tensor, True for entries that no gradient would
            move: padding rows, pruned weights.
        head: names of the layer that makes the outputs, as the model says or a forward tells.
        sharing: which tensors lie on one memory.
    """

    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    sigma: dict[str, float | None] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    named: bool = True
    chosen: bool = False
    outside: frozenset[str] = frozenset()
    fixed: dict[str, Tensor] = field(default_factory=dict)
    head: frozenset[str] = frozenset()
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def live(self) -> dict[str, Tensor]:
        """Name -> every tensor that may move, buffers included."""
        return {**self.buffers, **self.tensors}

    @property
    def owners(self) -> dict[str, type[nn.Module]]:
        """Name -> the type of the first module that owns it; empty where no model is known."""
        return {place.name: place.kind for place in reversed(self.places)}

    def movable(self, *, frozen: bool = False) -> tuple[str, ...]:
        """Return the names of the parameters that may move, in order, each memory once.

        Args:
            frozen: whether those with ``requires_grad=False`` are among them.
        """
        names = [
            name
            for name, tensor in self.tensors.items()
            if name not in self.outside and (frozen or not is_frozen(tensor))
        ]
        return self.sharing.once(names)


def is_frozen(tensor: Tensor) -> bool:
    """Return whether gradients do not move a parameter; a plain tensor was chosen to move."""
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def slots_of_module(model: nn.Module) -> Slots:
    """Return a model's parameters and buffers, those of integers left out: see `moves`."""
    names = module_names(model)
    for parameter in model.parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(
                f"{names[id(parameter)]!r} of a lazy layer has no shape yet: send a batch through "
                "the model first"
            )
    tensors: dict[str, Tensor] = {names[id(p)]: p for p in model.parameters() if moves(p)}
    return with_model(Slots(tensors, sigma=dict.fromkeys(tensors)), model)


def moves(tensor: Tensor) -> bool:
    """Return whether numbers of this type can move: integers and 8-bit floats are codes."""
    return tensor.dtype in _MOVABLE


def with_model(slots: Slots, model: nn.Module, scored: Iterable[nn.Module] = ()) -> Slots:
    """Add what a model knows of the tensors, and its floating-point buffers.

    Args:
        slots: the tensors.
        model: holds them.
        scored: the models that a fitness scores; none: `model`.
    """
    pairs = [(name, buffer) for name, buffer in model.named_buffers() if moves(buffer)]
    cleaned = clean_names([name for name, _ in pairs])
    buffers = {name: buffer for name, (_, buffer) in zip(cleaned, pairs, strict=True)}
    live = {**buffers, **slots.tensors}
    ids = {id(tensor): name for name, tensor in live.items()}
    places = places_of(model, ids)
    known = {id(t) for one in scored or (model,) for t in (*one.parameters(), *one.buffers())}
    outside = (name for name, tensor in slots.tensors.items() if id(tensor) not in known)
    return replace(
        slots,
        buffers=buffers,
        sigma={**dict.fromkeys(buffers), **slots.sigma},
        places=places,
        outside=frozenset() if slots.chosen else frozenset(outside),
        fixed=fixed_entries(places),
        head=frozenset(ids[key] for key in declared_head(model) if key in ids),
        sharing=sharing_of(live),
    )


def slots_of(target: nn.Module | Mapping[str, Tensor] | Slots) -> Slots:
    """Return the slots of whatever can be evolved."""
    if isinstance(target, Slots):
        return target
    if isinstance(target, nn.Module):
        return slots_of_module(target)
    if isinstance(target, Mapping):
        return slots_of_tensors(target)
    raise ValueError(
        f"target must be a torch.nn.Module or a dictionary of named tensors, "
        f"got {type(target).__name__}"
    )


def slots_of_tensors(tensors: Mapping[str, Tensor]) -> Slots:
    """Return the slots of named tensors."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not moves(tensor):
            what = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name!r} is of {what}: only floating-point tensors can be evolved")
    return Slots(
        dict(tensors), sigma=dict.fromkeys(tensors), chosen=True, sharing=sharing_of(tensors)
    )


def slots_of_groups(groups: Iterable[Mapping[str, Any]], model: nn.Module | None) -> Slots:
    """Return the slots of an optimizer's parameter groups, those of integers left out.

    Names come from the groups' ``param_names`` (an optimizer made from `named_parameters`), else
    from `model`, else they are positions. A group's ``sigma`` goes with its parameters.

    Raises:
        ValueError: parameters of which `model` has none; two of the same name; a sigma below 0.
    """
    groups = list(groups)
    known = module_names(model) if model is not None else {}
    sigmas, parameters = sigmas_of_groups(groups), movable_of_groups(groups)
    given = [
        name
        for group in groups
        for name, p in zip(group.get("param_names", ()), group["params"], strict=False)
        if moves(p)
    ]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None and model is None:
        raise ValueError(
            f"two parameters of the optimizer are called {twice!r}: pass model=, or tell them "
            "apart by named_parameters(prefix=...)"
        )
    if model is not None and parameters and not any(id(p) in known for p in parameters):
        raise ValueError(
            f"parameter 0 of the optimizer, of shape {tuple(parameters[0].shape)}, is not one of "
            "the model's, nor is any other: pass the model that the optimizer trains"
        )
    positions = [f"group{g}.{i}" for g, group in enumerate(groups) for i, _ in _members(group)]
    are_given = len(given) == len(parameters) and twice is None
    if are_given:
        names = clean_names(given)
    else:
        names = [known.get(id(p), at) for p, at in zip(parameters, positions, strict=True)]
    tensors = dict(zip(names, parameters, strict=True))
    sigma = dict(zip(names, sigmas, strict=True))
    named = are_given or model is not None
    slots = Slots(tensors, sigma=sigma, named=named, sharing=sharing_of(tensors))
    return with_model(slots, model) if model is not None else slots


def _members(group: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
    """Yield position and tensor of a group's parameters that can move."""
    for i, parameter in enumerate(group["params"]):
        if moves(parameter):
            yield i, parameter


def movable_of_groups(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """Return the parameters of an optimizer that can move, in order."""
    return [parameter for group in groups for _, parameter in _members(group)]


def sigmas_of_groups(groups: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Return each parameter that can move the ``sigma`` of its group, or None."""
    sigmas = [group.get("sigma") for group in groups for _ in _members(group)]
    for sigma in sigmas:
        if sigma is not None and not (sigma >= 0 and math.isfinite(sigma)):
            raise ValueError(f"a parameter group's sigma must be finite and >= 0, got {sigma}")
    return sigmas


def renamed(slots: Slots, names: Sequence[str]) -> Slots:
    """Return positional slots the names under which a run was saved."""
    if len(names) != len(slots.tensors):
        raise ValueError(
            f"the saved run moved {len(names)} tensors, this one has {len(slots.tensors)}"
        )
    tensors = dict(zip(names, slots.tensors.values(), strict=True))
    sigma = {name: slots.sigma.get(old) for name, old in zip(names, slots.tensors, strict=True)}
    return Slots(tensors, sigma=sigma, named=True, sharing=sharing_of(tensors))


def check_memory(slots: Slots, names: Iterable[str]) -> None:
    """Refuse to move tensors of which one cannot be written without writing into another.

    Raises:
        ValueError: two that overlap in part; one whose own entries lie on one memory.
    """
    wanted, live = set(names), slots.live
    for one, other in slots.sharing.overlaps:
        if {one, other} <= wanted:
            raise InputError(
                f"{one!r}, {tuple(live[one].shape)}, and {other!r}, {tuple(live[other].shape)}, "
                "share a part of their memory and cannot both move: clone one of them"
            )
    for name in slots.sharing.folded:
        if name in wanted:
            raise InputError(
                f"{name!r}, shape {tuple(live[name].shape)}, strides {live[name].stride()}, has "
                "several entries on one memory (an expanded tensor?) and cannot move: make it "
                "contiguous"
            )


def version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; -1 where torch does not count."""
    return -1 if tensor.is_inference() else tensor._version
