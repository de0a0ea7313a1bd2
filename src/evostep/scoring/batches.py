"""Batches: nests of tensors, read, split into inputs and targets, moved, joined and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Examples:
    """The batches on which one generation scores everybody, each (inputs, targets)."""

    batches: tuple[tuple[Any, Any], ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(self.batches)


def examples_of(batches: list[tuple[Any, Any]]) -> Examples:
    """Return batches as `Examples`, counted."""
    return Examples(tuple(batches), sum(batch_size(*batch) for batch in batches))


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Split a batch into (inputs, targets): see `Fitness` for the forms it may have.

    Example:
        >>> split_batch({"x": 1, "labels": 2})
        ({'x': 1}, 2)
    """
    if isinstance(batch, Mapping):
        keys = [key for key in TARGET_KEYS if key in batch]
        if not keys:
            raise ValueError(
                f"a batch with the keys {', '.join(map(str, batch))} has no targets: name them one "
                f"of {', '.join(TARGET_KEYS)}, or pass forward="
            )
        inputs = {key: value for key, value in batch.items() if key != keys[0]}
        return inputs, batch[keys[0]]
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    raise ValueError(
        f"a batch must be (inputs, targets) or a dictionary, got {type(batch).__name__}: "
        "pass forward= for batches of another form"
    )


def move(value: Any, device: torch.device) -> Any:
    """Move tensors in nested tuples, lists and dictionaries to `device`."""
    if device.type != "cuda":
        return map_tensors(value, lambda tensor: tensor.to(device))
    # from pinned memory the copy does not hold up the host
    return map_tensors(
        value,
        lambda tensor: (tensor if tensor.is_cuda else tensor.pin_memory()).to(
            device, non_blocking=True
        ),
    )


def model_device(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer (CPU where it has none)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def batch_size(inputs: Any, targets: Any) -> int:
    """Return how many examples a batch has.

    Example:
        >>> batch_size({"x": torch.zeros(3, 2)}, None)
        3
    """
    for value in (targets, inputs):
        if isinstance(value, Tensor):
            return int(value.shape[0]) if value.ndim else 1
        if isinstance(value, Mapping):
            return batch_size(None, next(iter(value.values()), None))
        if isinstance(value, tuple | list) and value:
            return batch_size(None, value[0])
    return 1


def map_tensors(value: Any, change: Callable[[Tensor], Any], other: Any = ...) -> Any:
    """Apply `change` to the tensors in nested tuples, lists and dictionaries.

    Args:
        value: the nest.
        change: what to put in a tensor's place.
        other: what to put in the place of anything else; left out: the thing itself.

    Example:
        >>> map_tensors({"x": torch.zeros(2), "name": "a"}, len)
        {'x': 2, 'name': 'a'}
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change, other) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_tensors(item, change, other) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value if other is ... else other


def concatenate(parts: Sequence[Any]) -> Any:
    """Join batches along their first dimension: tensors, and tuples, lists or dicts of tensors."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.ndim else torch.stack(list(parts))
    if isinstance(first, Mapping):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(concatenate(column) for column in zip(*parts, strict=True))
    return list(parts)
