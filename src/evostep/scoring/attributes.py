"""Plain attributes of modules: what a forward keeps on a module is put back as it was.

A hidden state, kept activations, a counter, the weight that `weight_norm` or pruning derives before
each forward: none is a parameter or a registered buffer, and each would hand what one member left
behind to the next, or a tensor of many members out of `vmap`.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from evostep.genome.memory import address_of
from evostep.genome.slots import version

_TORCHS_OWN = frozenset(vars(nn.Module()))  # modes, parameters, buffers, submodules, hooks
_LEFT_ALONE = _TORCHS_OWN | {"forward"}  # which whoever listens to a module puts before its own
_MANY = 1000  # entries beyond which a container (a vocabulary) is not looked into
_ABSENT = object()


class Attributes:
    """The plain attributes of a model's modules, to be put back as they were.

    Compared by identity: an attribute that was bound anew, and entries of lists, dictionaries, sets
    and dataclasses in any depth. Tensors that were written to in place are told by torch's counter
    of versions, and get back the values of which a copy is kept here.

    Objects of other kinds that a forward makes where there was nothing stay: they are caches.

    Args:
        model: whose modules are read.
        moving: ids of further tensors than the model's own whose values are not kept.
    """

    def __init__(self, model: nn.Module, moving: Collection[int] = ()) -> None:
        self._held: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        values: list[Any] = []
        for module in model.modules():
            held = vars(module)
            own = {key: value for key, value in held.items() if key not in _LEFT_ALONE}
            self._held.append((held, own))
            values += own.values()
        registered = (*model.parameters(), *model.buffers())
        memory = {_storage(tensor) for tensor in registered}
        seen = set(moving)
        for leaf in self._leaves(values, set()):
            if id(leaf) not in seen and _storage(leaf) not in memory:
                seen.add(id(leaf))
                self._tensors.append((leaf, version(leaf), leaf.detach().clone()))

    def _leaves(self, values: Collection[Any], seen: set[int]) -> Iterator[Tensor]:
        """Yield the tensors within; note what containers hold on the way."""
        for value in values:
            if isinstance(value, Tensor):
                yield value
            elif id(value) not in seen and (entries := _entries(value)) is not None:
                seen.add(id(value))
                if not isinstance(value, tuple):
                    self._contents.append((value, _copy(value)))
                yield from self._leaves(entries, seen)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what has changed since."""
        for held, own in self._held:
            same = len(held) == len(own) + len(_TORCHS_OWN)
            if not (same and all(map(operator.is_, map(held.get, own), own.values()))):
                _put_back(held, own)
        for container, before in self._contents:
            if not _same_entries(container, before):
                _refill(container, before)
        for i, (tensor, was, value) in enumerate(self._tensors):
            if version(tensor) != was or (was < 0 and torch.is_inference_mode_enabled()):
                tensor.copy_(value)
                self._tensors[i] = tensor, version(tensor), value


@torch.no_grad()
def derive_weights(model: nn.Module) -> None:
    """Compute the weights that torch's hooks derive, from the parameters as they stand.

    Old-style `weight_norm` and `spectral_norm`, and pruning, keep them as plain attributes, which
    are right after the next forward only.

    Example:
        >>> layer = torch.nn.utils.prune.identity(nn.Linear(1, 1), "weight")
        >>> with torch.no_grad():
        ...     _ = layer.weight_orig.fill_(3.0)
        >>> derive_weights(layer)
        >>> layer.weight
        tensor([[3.]])
    """
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):  # without another iteration of its power method
                weight = hook.compute_weight(module, do_power_iteration=False)
                setattr(module, hook.name, weight)
            elif isinstance(hook, WeightNorm | BasePruningMethod):
                hook(module, ())


def _storage(tensor: Tensor) -> int:
    return address_of(tensor) or id(tensor)


def _entries(value: Any) -> Collection[Any] | None:
    """Return what a container holds; None for what is none, or is too large to look into."""
    if isinstance(value, dict):
        entries: Collection[Any] = value.values()
    elif isinstance(value, list | tuple | set | deque):
        entries = value
    elif _is_record(value):
        entries = vars(value).values()
    else:
        return None
    return entries if len(entries) <= _MANY else None


def _is_record(value: Any) -> bool:
    plain = isinstance(value, SimpleNamespace) or is_dataclass(value)
    return plain and not isinstance(value, type | nn.Module) and hasattr(value, "__dict__")


def _copy(container: Any) -> Any:
    if isinstance(container, dict):
        return dict(container)
    return dict(vars(container)) if _is_record(container) else list(container)


def _same_entries(container: Any, before: Any) -> bool:
    now = vars(container) if _is_record(container) else container
    if len(now) != len(before):
        return False
    if isinstance(before, dict):
        same = map(operator.is_, map(now.get, before), before.values())
        return all(same) and all(key in now for key in before)
    if isinstance(now, set):
        return all(value in now for value in before)
    return all(map(operator.is_, now, before))


def _refill(container: Any, before: Any) -> None:
    target = vars(container) if _is_record(container) else container
    target.clear()
    if isinstance(before, dict) or isinstance(container, set):
        target.update(before)
    else:
        target.extend(before)


def _put_back(held: dict[str, Any], own: dict[str, Any]) -> None:
    for key in held.keys() - own.keys() - _LEFT_ALONE:
        if _is_left_behind(held[key]):
            del held[key]
    for key, value in own.items():
        now = held.get(key, _ABSENT)
        if now is not value and (value is not None or now is _ABSENT or _is_left_behind(now)):
            held[key] = value


def _is_left_behind(value: Any) -> bool:
    """Return whether a forward's new attribute is a result; else it is a cache of some kind."""
    if isinstance(value, nn.Module | type):
        return False
    if isinstance(value, int | float | complex | str | bytes) or hasattr(value, "__array__"):
        return True
    if isinstance(value, dict | list | tuple | set | deque) or _is_record(value):
        return True
    return any(isinstance(held, Tensor) for held in getattr(value, "__dict__", {}).values())
