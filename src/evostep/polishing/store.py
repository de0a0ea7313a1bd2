"""What is finished of a run, kept so that one that was killed goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Store(Protocol):
    """Keeps named tensors."""

    def load(self, name: str) -> Tensors | None:
        """Return what was saved under a name; None: nothing was."""

    def save(self, name: str, tensors: Tensors) -> None:
        """Save tensors, whole or not at all."""


class Nowhere:
    """Keeps nothing."""

    def load(self, name: str) -> Tensors | None:
        """Return None."""
        return None

    def save(self, name: str, tensors: Tensors) -> None:
        """Do nothing."""


def number_in(store: Store, name: str, measure: Callable[[], int]) -> int:
    """Return a number that is measured once, and kept: a resumed run reads it again.

    It is kept twice, for it could not be measured again where it is damaged.
    """
    names = name, f"{name}-again"
    kept = store.load(names[0]) or store.load(names[1])
    if kept is None:
        kept = {"number": torch.tensor(measure())}
        for one in names:
            store.save(one, kept)
    return int(kept["number"])
