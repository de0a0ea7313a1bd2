"""The checkpoints that a run remembers: few, evenly spaced, in host memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from evostep.errors import InputError
from evostep.spaces.base import Checkpoint


class Memory(Sequence[Checkpoint]):
    """Holds at most `size` checkpoints, the first and the newest always among them.

    One too many, and the one between its neighbours goes whose neighbours are nearest to each
    other (the newest of several), so that no gap is ever twice as long as in an even spacing.

    Args:
        size: copies of the weights that are kept, at least 1; with 1 it is the newest.

    Example:
        >>> memory = Memory(5)
        >>> for _ in range(17):
        ...     memory.add({})
        >>> [checkpoint.number for checkpoint in memory]
        [1, 4, 9, 14, 17]
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self._kept: list[Checkpoint] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self._kept)

    def __getitem__(self, index: Any) -> Any:
        return self._kept[index]

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Take a checkpoint: copies of `weights` in host memory.

        Raises:
            ValueError: weights of other names or shapes than the checkpoints before.
        """
        for before in self._kept[-1:]:
            _check_same(before.weights, weights)
        copies = {name: w.detach().to("cpu", copy=True) for name, w in weights.items()}
        kept = [*self._kept, Checkpoint(self.taken + 1, copies)]
        if len(kept) > self.size:
            del kept[_superfluous([checkpoint.number for checkpoint in kept])]
        self._kept, self.taken = kept, self.taken + 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain tensors, numbers, lists and dictionaries."""
        return {
            "count": self.taken,
            "numbers": [checkpoint.number for checkpoint in self._kept],
            "weights": [dict(checkpoint.weights) for checkpoint in self._kept],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` returned."""
        pairs = zip(state["numbers"], state["weights"], strict=True)
        self._kept = [
            Checkpoint(int(number), {name: w.cpu() for name, w in weights.items()})
            for number, weights in pairs
        ]
        self.taken = int(state["count"])
        while len(self._kept) > self.size:  # saved by a run that kept more
            del self._kept[_superfluous([checkpoint.number for checkpoint in self._kept])]


def _check_same(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    shapes, others = ({n: tuple(t.shape) for n, t in w.items()} for w in (now, before))
    for name in {**shapes, **others}:
        if shapes.get(name) != others.get(name):
            raise InputError(
                f"the model has changed since the last remember(): {name!r} had the shape "
                f"{others.get(name, 'of nothing')} and has {shapes.get(name, 'none')}; remember "
                "one model, or make a new Evolution"
            )


def _superfluous(numbers: Sequence[int]) -> int:
    """Return the index of the checkpoint to drop."""
    if len(numbers) < 3:
        return 0
    return min(range(1, len(numbers) - 1), key=lambda i: (numbers[i + 1] - numbers[i - 1], -i))
