"""Any rows of a generation's examples, gathered out of its batches into new ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evostep.engines.base import CannotScore
from evostep.errors import reason
from evostep.scoring.batches import Examples
from evostep.scoring.nests import batch_size, leaves, map_leaves


class Rows:
    """The examples of a generation by their numbers, counted through all batches.

    A tensor whose first dimension is the batch's size has a row for each example; anything else
    is shared by all of a batch. Batches are mixed where all but the rows is the same in them.

    Args:
        examples: of the generation.

    Raises:
        CannotScore: what is neither a tensor nor shared, such as a list of texts.

    Example:
        >>> batches = ((torch.arange(3), torch.zeros(3)), (torch.arange(3, 5), torch.ones(2)))
        >>> gathered, numbers = Rows(Examples(batches, 5)).take(torch.tensor([4, 0, 3]))
        >>> gathered.batches, numbers
        (((tensor([0, 3, 4]), tensor([0., 1., 1.])),), tensor([0, 3, 4]))
    """

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._batches = examples.batches
        self._sizes = [batch_size(*batch) for batch in examples.batches]
        self._limit = max(self._sizes, default=1)
        self._ends = torch.tensor(self._sizes).cumsum(0)
        alike: dict[Hashable, list[int]] = {}
        for b, (batch, size) in enumerate(zip(self._batches, self._sizes, strict=True)):
            likeness = tuple(_likeness(part, size) for part in batch)
            alike.setdefault(likeness, []).append(b)
        self._alike = list(alike.values())

    def take(self, rows: Tensor) -> tuple[Examples, Tensor]:
        """Return these examples, and their numbers in the order in which they now stand.

        No batch is larger than the largest that there was.

        Args:
            rows: (m,) numbers of examples, int64 in host memory, each once.

        Raises:
            CannotScore: a batch that cannot be taken apart.
        """
        rows = rows.sort().values
        owner = torch.searchsorted(self._ends, rows, right=True)
        batches: list[tuple[Any, Any]] = []
        numbers: list[Tensor] = []
        for group in self._alike:
            mine = rows[torch.isin(owner, torch.tensor(group))]
            if not len(mine):
                continue
            for piece in mine.chunk(-(-len(mine) // self._limit)):
                batches.append(self._gather(piece))
                numbers.append(piece)
        found = torch.cat(numbers) if numbers else rows
        return self._examples.with_batches(batches), found

    @torch.no_grad()
    def _gather(self, rows: Tensor) -> tuple[Any, Any]:
        owner = torch.searchsorted(self._ends, rows, right=True)
        which, counts = owner.unique_consecutive(return_counts=True)
        parts = [
            _Part(self._batches[b], own - self._ends[b] + self._sizes[b])
            for b, own in zip(which.tolist(), rows.split(counts.tolist()), strict=True)
        ]
        size = self._sizes[int(which[0])]
        try:
            inputs = _merge([part.batch[0] for part in parts], parts, size)
            targets = _merge([part.batch[1] for part in parts], parts, size)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise CannotScore(f"a batch cannot be taken apart: {reason(error)}") from error
        return inputs, targets


class _Part:
    """Rows of one batch; their numbers go to a device once."""

    def __init__(self, batch: tuple[Any, Any], rows: Tensor) -> None:
        self.batch = batch
        self.count = len(rows)
        self._rows = {rows.device: rows}

    def write(self, tensor: Tensor, out: Tensor) -> None:
        """Write the rows of a tensor into `out`."""
        rows = self._rows.get(tensor.device)
        if rows is None:
            rows = self._rows[tensor.device] = self._rows[torch.device("cpu")].to(tensor.device)
        torch.index_select(tensor, 0, rows, out=out)


def _merge(values: Sequence[Any], parts: Sequence[_Part], size: int) -> Any:
    """Join the rows of batches that are alike; `size` is the first one's."""

    def join(*found: Any) -> Any:
        first = found[0]
        if not isinstance(first, Tensor) or not _has_rows(first, size):
            return first
        out = first.new_empty((sum(part.count for part in parts), *first.shape[1:]))
        spaces = out.split([part.count for part in parts])
        for value, part, space in zip(found, parts, spaces, strict=True):
            part.write(value, space)
        return out

    return map_leaves(join, *values)


def _has_rows(tensor: Tensor, size: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == size


def _likeness(value: Any, size: int) -> Hashable:
    """Return what two batches must have in common for their rows to go into one."""
    if isinstance(value, Tensor):
        if _has_rows(value, size):
            return ("rows", value.shape[1:], value.dtype, value.device)
        return ("shared", id(value))
    if isinstance(value, Mapping):
        return tuple((key, _likeness(item, size)) for key, item in value.items())
    if isinstance(value, tuple | list):
        if len(value) == size > 1 and not _holds_tensor(value):
            raise CannotScore(
                f"a batch holds a {type(value).__name__} of {size} {type(value[0]).__name__}, "
                "which may have one for each example: give tensors"
            )
        return (type(value), *(_likeness(item, size) for item in value))
    if value is None or isinstance(value, bool | int | float | str):
        return ("constant", value)
    return ("shared", id(value))


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value))
