"""Batches: nests of tensors, read, split into inputs and targets, moved, joined and counted.

Tuples, lists and dictionaries are walked in one place, by `map_leaves` and `leaves`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from evostep.noise import derive_seed
from evostep.scoring.isolation import preserved_rng, seed_everything

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

Forward = Callable[[nn.Module, Any], tuple[Any, Any]]


def map_leaves(change: Callable[..., Any], *values: Any) -> Any:
    """Apply `change` to what stands at each place of nested tuples, lists and dictionaries.

    Args:
        change: takes one leaf of each nest, returns what to put there.
        *values: nests of the structure of the first one.

    Example:
        >>> map_leaves(lambda a, b: a + b, {"x": 1, "y": (2, 3)}, {"x": 10, "y": (20, 30)})
        {'x': 11, 'y': (22, 33)}
    """
    first = values[0]
    if isinstance(first, Mapping):
        return {key: map_leaves(change, *(value[key] for value in values)) for key in first}
    if isinstance(first, tuple | list):
        items = [map_leaves(change, *column) for column in zip(*values, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return change(*values)


def leaves(value: Any) -> Iterator[Any]:
    """Walk through what stands at each place of nested tuples, lists and dictionaries.

    Example:
        >>> list(leaves({"x": 1, "y": (2, [3])}))
        [1, 2, 3]
    """
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


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

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        return leaf if other is ... else other

    return map_leaves(one, value)


def concatenate(parts: Sequence[Any]) -> Any:
    """Join batches along their first dimension: tensors, and tuples, lists or dicts of tensors."""

    def join(*some: Any) -> Any:
        if not isinstance(some[0], Tensor):
            return list(some)
        return torch.cat(some) if some[0].ndim else torch.stack(some)

    return map_leaves(join, *parts)


@dataclass(frozen=True)
class Examples:
    """The batches on which one generation scores everybody, each (inputs, targets)."""

    batches: tuple[tuple[Any, Any], ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(self.batches)


def examples_of(batches: Sequence[tuple[Any, Any]]) -> Examples:
    """Return batches as `Examples`, counted."""
    return Examples(tuple(batches), sum(batch_size(*batch) for batch in batches))


class Batches:
    """A user's batches: read once, kept on a model's device, and sent forward through it.

    Args:
        source: a list, a DataLoader that does not shuffle, or any iterable that can be read again.
        forward: ``forward(model, batch) -> (outputs, targets)`` for batches of any form; None:
            batches are split as `split_batch` says.

    Raises:
        ValueError: batches that can be read only once, that shuffle, or that are none.
    """

    def __init__(self, source: Iterable[Any], forward: Forward | None = None) -> None:
        _refuse_unrepeatable(source)
        self.forward = forward
        self._source = source
        self._kept: list[tuple[Any, Any]] | None = None
        self._device = torch.device("cpu")

    def examples(self, model: nn.Module) -> Examples:
        """Return all examples, on the device of `model`."""
        device = model_device(model)
        if self._kept is None:
            with preserved_rng():
                # a DataLoader draws from the global stream, and so may a transform
                seed_everything(derive_seed("fitness batches"))
                read = [move(batch, device) for batch in self._source]
            if not read:
                raise ValueError("batches is empty: a fitness needs at least one batch")
            self._kept = [(b, None) if self.forward is not None else split_batch(b) for b in read]
            self._device = device
        if device != self._device:  # the model has moved since
            self._kept, self._device = move(self._kept, device), device
        return examples_of(self._kept)

    def apply(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """Send one batch forward through `model`; return (outputs, targets)."""
        if self.forward is not None:
            return self.forward(model, inputs)
        if isinstance(inputs, Mapping):
            outputs = model(**inputs)
        elif isinstance(inputs, tuple):
            outputs = model(*inputs)
        else:
            outputs = model(inputs)
        # Hugging Face models give an object or dictionary with `logits`
        if isinstance(outputs, Mapping) and "logits" in outputs:
            return outputs["logits"], targets
        return getattr(outputs, "logits", outputs), targets


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
        if isinstance(value, Tensor | Mapping | tuple | list):
            first = next(leaves(value), None)
            return len(first) if isinstance(first, Tensor) and first.ndim else 1
    return 1


def _refuse_unrepeatable(batches: Any) -> None:
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches is a {type(batches).__name__}, which can be read only once: "
            "pass a list or a DataLoader"
        )
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    if isinstance(batches, Sized) and not isinstance(batches, DataLoader) and not len(batches):
        raise ValueError("batches is empty: a fitness needs at least one batch")
    if isinstance(batches, DataLoader) and _shuffles(batches):
        raise ValueError(
            "batches is a DataLoader that shuffles, so that members and a resumed run would see "
            "other examples: pass shuffle=False"
        )


def _shuffles(loader: DataLoader[Any]) -> bool:
    samplers = (loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    return any(
        isinstance(sampler, _RANDOM_SAMPLERS)
        or (isinstance(sampler, DistributedSampler) and sampler.shuffle)
        for sampler in samplers
    )
