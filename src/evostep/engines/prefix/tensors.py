"""Tensors in nests, in the arguments of an operation, and the memory behind them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def tensors_in(value: Any, *, strict: bool = False) -> Iterator[Tensor]:
    """Find the tensors in nested tuples, lists, mappings and dataclasses.

    Args:
        value: the nest.
        strict: whether to refuse anything else, in which tensors may hide, or to pass over it.

    Raises:
        TypeError: something else, where strict.

    Example:
        >>> [len(tensor) for tensor in tensors_in({"x": torch.ones(2), "y": [torch.ones(3), "z"]})]
        [2, 3]
    """
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        value = tuple(value.values())
    elif is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in fields(value))
    if isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item, strict=strict)
    elif strict and not isinstance(value, _ATOMS):
        raise TypeError(f"a {type(value).__name__}, in which tensors cannot be found")


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Find the tensors that an operation writes to."""
    places = _writes(func)
    if not places:
        return []
    given = {**dict(enumerate(args)), **kwargs}
    return list(tensors_in([given[place] for place in places if place in given]))


@functools.cache
def _writes(func: Any) -> tuple[int | str, ...]:
    """Return the positions and the names of the arguments that an operation writes to."""
    schema = getattr(func, "_schema", None)  # operators of higher order have none
    arguments = enumerate(schema.arguments if schema is not None else ())
    found = [(i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write]
    return tuple(place for places in found for place in places)
