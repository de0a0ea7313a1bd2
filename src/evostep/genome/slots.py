"""Names of the tensors that evolve, fixed once, and what is known of each.

Noise depends on names, so they must not depend on wrappers: ``_orig_mod.`` (torch.compile) and
``module.`` (data parallel) are stripped. Tied weights count once, under their first name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")


@dataclass
class Slots:
    """The live tensors that a space may move.

    Attributes:
        tensors: name -> the parameter itself (not a copy).
        buffers: name -> the floating-point buffer itself; empty where no model is known.
        sigma: name -> a parameter group's own sigma, or None.
        owners: name -> the type of the module that owns it; empty where no model is known.
        named: False where names are mere positions (``"group0.3"``).
    """

    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    sigma: dict[str, float | None] = field(default_factory=dict)
    owners: dict[str, type[nn.Module]] = field(default_factory=dict)
    named: bool = True

    @property
    def live(self) -> dict[str, Tensor]:
        """Name -> every tensor that may move, buffers included."""
        return {**self.buffers, **self.tensors}


def clean_names(names: Sequence[str]) -> list[str]:
    """Strip the prefixes of wrappers, unless two names would become one.

    Example:
        >>> clean_names(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"])
        ['fc.weight', 'fc.bias']
    """
    cleaned = [
        ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names
    ]
    while cleaned and all(name.startswith("module.") for name in cleaned):
        cleaned = [name.removeprefix("module.") for name in cleaned]
    return cleaned if len(set(cleaned)) == len(names) else list(names)


def module_names(model: nn.Module) -> dict[int, str]:
    """Return id(parameter) -> its clean name, tied parameters once."""
    pairs = list(model.named_parameters())
    cleaned = clean_names([name for name, _ in pairs])
    return {id(tensor): name for name, (_, tensor) in zip(cleaned, pairs, strict=True)}


def _owners(model: nn.Module, ids: Mapping[int, str]) -> dict[str, type[nn.Module]]:
    owners: dict[str, type[nn.Module]] = {}
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) in ids:
                owners.setdefault(ids[id(tensor)], type(module))
    return owners


def slots_of_module(model: nn.Module) -> Slots:
    """Return every floating-point parameter and buffer of a model (quantised ones do not move)."""
    names = module_names(model)
    tensors: dict[str, Tensor] = {
        names[id(p)]: p for p in model.parameters() if p.is_floating_point()
    }
    return with_model(Slots(tensors, sigma=dict.fromkeys(tensors)), model)


def with_model(slots: Slots, model: nn.Module) -> Slots:
    """Add what a model knows: owners of the tensors, and its floating-point buffers."""
    pairs = [(name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point()]
    cleaned = clean_names([name for name, _ in pairs])
    buffers = {name: buffer for name, (_, buffer) in zip(cleaned, pairs, strict=True)}
    ids = {id(tensor): name for name, tensor in (*slots.tensors.items(), *buffers.items())}
    sigma = {**dict.fromkeys(buffers), **slots.sigma}
    return Slots(slots.tensors, buffers, sigma, _owners(model, ids), slots.named)


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
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name!r} is of {what}: only floating-point tensors can be evolved")
    return Slots(dict(tensors), sigma=dict.fromkeys(tensors))


def slots_of_groups(groups: Iterable[Mapping[str, Any]], model: nn.Module | None) -> Slots:
    """Return the slots of an optimizer's parameter groups.

    Names come from the groups' ``param_names`` (an optimizer made from `named_parameters`), else
    from `model`, else they are positions. A group's ``sigma`` goes with its parameters.

    Raises:
        ValueError: a parameter that `model` does not have; two of the same name; a sigma below 0.
    """
    groups = list(groups)
    known = module_names(model) if model is not None else {}
    parameters = [p for group in groups for p in group["params"]]
    given = [name for group in groups for name in group.get("param_names", ())]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None and model is None:
        raise ValueError(
            f"two parameters of the optimizer are called {twice!r}: pass model=, or tell them "
            "apart by named_parameters(prefix=...)"
        )
    if len(given) == len(parameters) and twice is None:
        names, named = clean_names(given), True
    elif model is not None:
        missing = [i for i, p in enumerate(parameters) if id(p) not in known]
        if missing:
            raise ValueError(
                f"parameter {missing[0]} of the optimizer, of shape "
                f"{tuple(parameters[missing[0]].shape)}, is not one of the model's: pass the model "
                "that the optimizer trains"
            )
        names, named = [known[id(p)] for p in parameters], True
    else:
        sizes = [len(group["params"]) for group in groups]
        names = [f"group{g}.{i}" for g, size in enumerate(sizes) for i in range(size)]
        named = False
    tensors = dict(zip(names, parameters, strict=True))
    sigma = dict(zip(names, sigmas_of_groups(groups), strict=True))
    slots = Slots(tensors, sigma=sigma, named=named)
    return with_model(slots, model) if model is not None else slots


def sigmas_of_groups(groups: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Return each parameter the ``sigma`` of its group, or None."""
    sigmas = [group.get("sigma") for group in groups for _ in group["params"]]
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
    return Slots(tensors, sigma=sigma, named=True)


def version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; -1 where torch does not count."""
    return -1 if tensor.is_inference() else tensor._version
