"""Where batches are kept: copied there, moved to where a model is, and how much room there is."""

from __future__ import annotations

import copy
import os
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from evostep.scoring.nests import is_array, map_leaves

ATOMS = (str, bytes, bool, int, float, complex, type(None))


class Placing:
    """Copies leaves to where they are kept. What is one object in many batches stays one.

    Args:
        device: where that is.
        pin: whether in memory from which a copy to a GPU does not hold up the host.
    """

    def __init__(self, device: torch.device, pin: bool) -> None:
        self._device, self._pin = device, pin
        self._known: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def __call__(self, leaf: Any) -> Any:
        """Copy one."""
        if isinstance(leaf, Tensor):
            return self._tensor(leaf)
        if isinstance(leaf, PackedSequence):  # its lengths stay in host memory
            parts: Any = [None if part is None else part.detach().clone() for part in leaf]
            return _packed_to(PackedSequence(*parts), self._device)
        if isinstance(leaf, ATOMS):
            return leaf
        try:
            leaf = copy.deepcopy(leaf)
        except Exception:  # what cannot be copied is handed out as it is
            return leaf
        moved = getattr(leaf, "to", None)
        return moved(self._device) if callable(moved) else leaf

    def _tensor(self, tensor: Tensor) -> Tensor:
        made, found = self._known.get(id(tensor), (None, None))
        # a loader may reuse its memory: the object tells nothing of what it holds
        if (
            found is not None
            and made is not None
            and made() is tensor
            and (found.is_meta or torch.equal(found, tensor.detach().to(found.device)))
        ):
            return found
        plain = tensor.detach()
        found = plain.clone() if plain.device == self._device else _moved(plain, self._device)
        if self._pin and found.device.type == "cpu":
            found = found.pin_memory()
        self._known[id(tensor)] = weakref.ref(tensor), found
        return found


def tensor_of(leaf: Any) -> Any:
    """Return an array as a tensor on the same memory, or as a list where it holds no numbers."""
    if not is_array(leaf):
        return leaf
    if leaf.dtype.kind not in "biufc":
        return leaf.tolist()
    return torch.as_tensor(leaf if leaf.flags.writeable else leaf.copy())


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # from pinned memory the copy does not hold up the host
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


def _packed_to(packed: Any, device: torch.device) -> Any:
    return packed.to(device)  # annotated as if it took no device


def move(value: Any, device: torch.device) -> Any:
    """Move the tensors of a nest to `device`, in new containers."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return _moved(leaf, device)
        return _packed_to(leaf, device) if isinstance(leaf, PackedSequence) else leaf

    return map_leaves(one, value)


def model_device(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer (CPU where it has none)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def capacity(device: torch.device) -> int | None:
    """Return all the memory that a device has; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type != "cpu":
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None
