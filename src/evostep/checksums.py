"""One checksum of whatever states are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def checksum(state: Any) -> str:
    """Return the SHA-256 of tensors, numbers and texts, in whatever containers they are.

    Example:
        >>> one = {"w": torch.zeros(2), "n": [1, 2.5]}
        >>> checksum(one) == checksum({**one, "w": torch.tensor([0.0, -0.0])})
        False
    """
    digest = hashlib.sha256()
    _add(state, digest)
    return digest.hexdigest()


def _add(value: Any, digest: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"{{{len(value)} ".encode())
        for key, item in value.items():
            _add(key, digest)
            _add(item, digest)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)} ".encode())
        for item in value:
            _add(item, digest)
    else:
        digest.update(f"{type(value).__name__} {value!r} ".encode())
