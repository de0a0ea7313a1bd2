"""Nests, of which batches are made: walked, joined and counted.

Tensors and other things in tuples, lists, mappings and dataclasses. All of them are walked in one
place, by `map_leaves` and `leaves`. A `PackedSequence` is a leaf: its rows are no examples.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from evostep.errors import InputError
from evostep.genome.slots import version


def map_leaves(change: Callable[..., Any], *values: Any) -> Any:
    """Apply `change` to what stands at each place of a nest, in new containers of the same types.

    Args:
        change: takes one leaf of each nest, returns what to put there.
        *values: nests of the structure of the first one.

    Example:
        >>> map_leaves(lambda a, b: a + b, {"x": 1, "y": (2, 3)}, {"x": 10, "y": (20, 30)})
        {'x': 11, 'y': (22, 33)}
    """
    first = values[0]
    if isinstance(first, Tensor | PackedSequence):
        return change(*values)
    if isinstance(first, Mapping):
        items = {key: map_leaves(change, *(value[key] for value in values)) for key in first}
        return items if type(first) is dict else _like(first, items)
    if isinstance(first, tuple | list):
        found = [map_leaves(change, *column) for column in zip(*values, strict=True)]
        return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    if _is_record(first):
        new = copy.copy(first)
        for field in fields(first):
            parts = (getattr(value, field.name) for value in values)
            object.__setattr__(new, field.name, map_leaves(change, *parts))  # of a frozen one, too
        return new
    return change(*values)


def leaves(value: Any) -> Iterator[Any]:
    """Walk through what stands at each place of a nest.

    Example:
        >>> list(leaves({"x": 1, "y": (2, [3])}))
        [1, 2, 3]
    """
    if isinstance(value, Tensor | PackedSequence):
        yield value
    elif isinstance(value, Mapping | tuple | list) or _is_record(value):
        for item in parts_of(value):
            yield from leaves(item)
    else:
        yield value


def parts_of(value: Any) -> Sequence[Any]:
    """Return what a tuple, list, mapping or dataclass holds, in its order."""
    if isinstance(value, Mapping):
        return tuple(value.values())
    if isinstance(value, tuple | list):
        return value
    return tuple(getattr(value, field.name) for field in fields(value))


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _like(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping of the same type, such as a tokenizer's `BatchEncoding`, of these."""
    if not isinstance(mapping, MutableMapping):
        return items
    new = copy.copy(mapping)
    for key, item in items.items():
        new[key] = item
    return new


def map_tensors(value: Any, change: Callable[[Tensor], Any], other: Any = ...) -> Any:
    """Apply `change` to the tensors of a nest.

    Args:
        value: the nest.
        change: what to put in a tensor's place.
        other: what to put in the place of anything else; left out: the thing itself.

    Example:
        >>> map_tensors({"x": torch.zeros(2), "name": "a"}, len)
        {'x': 2, 'name': 'a'}
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        return leaf if other is ... else other

    return map_leaves(one, value)


def fresh(value: Any) -> Any:
    """Return a nest in containers of its own, with the same leaves."""
    return map_leaves(lambda leaf: leaf, value)


def is_array(value: Any) -> bool:
    """Return whether something is a NumPy array, without importing NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Walk through the tensors of a nest, those of a `PackedSequence` included."""
    for leaf in leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, PackedSequence):
            yield from (part for part in leaf if part is not None)


def versions(value: Any) -> list[int]:
    """Return how often each tensor of a nest was written to, as far as torch counts."""
    return [version(tensor) for tensor in tensors_of(value)]


def has_one_each(value: Any) -> bool:
    """Return whether a list or tuple has one thing for each example: texts, numbers, objects.

    One that holds tensors is a structure instead, each tensor with a row for each example; but for
    a list of dictionaries, as of boxes in images, and one of tensors of unequal lengths.

    Example:
        >>> has_one_each(["a", "b"]), has_one_each([torch.zeros(2), torch.ones(2)])
        (True, False)
    """
    if not isinstance(value, tuple | list) or hasattr(value, "_fields") or not value:
        return False
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return True
    held = [leaf for leaf in leaves(value) if isinstance(leaf, Tensor) or is_array(leaf)]
    if isinstance(value, list) and len(held) == len(value):
        return len({len(leaf) if leaf.ndim else -1 for leaf in held}) > 1
    return not held


def concatenate(parts: Sequence[Any]) -> Any:
    """Join what batches gave along the examples: tensors, arrays, lists of texts, nests.

    Raises:
        ValueError: tensors whose shapes differ in more than the number of examples.

    Example:
        >>> concatenate([["a", "b"], ["c"]])
        ['a', 'b', 'c']
    """
    first = parts[0]
    if all(part is None for part in parts):
        return None
    if any(has_one_each(part) for part in parts):
        return [item for part in parts for item in part]
    if isinstance(first, Tensor):
        return _cat(parts)
    if is_array(first):
        numpy = sys.modules["numpy"]
        return numpy.concatenate(parts) if first.ndim else numpy.stack(parts)
    if isinstance(first, tuple | list) and not isinstance(first, PackedSequence):
        found = [concatenate(column) for column in zip(*parts, strict=True)]
        return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    if isinstance(first, Mapping):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if _is_record(first):
        new = copy.copy(first)
        for field in fields(first):
            found = concatenate([getattr(part, field.name) for part in parts])
            object.__setattr__(new, field.name, found)
        return new
    return list(parts)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    if not parts[0].ndim:
        return torch.stack(list(parts))
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = " and ".join(sorted({str(tuple(part.shape)) for part in parts})[:2])
        raise InputError(
            f"batches of the shapes {shapes} cannot be joined for a metric of all examples: pad "
            "them to one length, or take a metric of each example"
        )
    return torch.cat(list(parts))


def batch_size(inputs: Any, targets: Any) -> int:
    """Return how many examples a batch has.

    Example:
        >>> batch_size({"x": torch.zeros(3, 2)}, None), batch_size("text", ["a", "b"])
        (3, 2)
    """
    for value in (targets, inputs):
        found = _rows(value)
        if found is not None:
            return found
    return 1


def _rows(value: Any) -> int | None:
    if has_one_each(value):
        return len(value)
    listed = None
    for leaf in leaves(value):
        if isinstance(leaf, PackedSequence):
            return int(leaf.batch_sizes[0])
        if (isinstance(leaf, Tensor) or is_array(leaf)) and leaf.ndim:
            return len(leaf)
    for part in parts_of(value) if isinstance(value, Mapping | tuple) or _is_record(value) else ():
        listed = listed or _rows(part)
    return listed
