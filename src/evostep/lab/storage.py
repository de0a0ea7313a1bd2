"""Files of a run: written whole or not at all, and read with an error that says what to do."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from evostep.errors import InputError, warn


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: no reader, and no killed run, is left with half of one.

    Folders that are missing are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # after success it is not there


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; a number that is not finite is null."""
    write_bytes(path, (json.dumps(_finite(value), indent=1, default=str) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; a file that is none is an InputError."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): delete it, or choose another --out"
        ) from error


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save the state of a run atomically, so that it loads with ``weights_only=True``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(dict(state), part)
    part.replace(path)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Load a state; a file that is truncated or something else is an InputError."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # torch raises half a dozen kinds
        reason = str(error).strip().splitlines()
        raise InputError(
            f"checkpoint {path} is corrupt ({reason[0] if reason else type(error).__name__}): "
            "delete it, and the part of the run that it holds is done again"
        ) from error


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """Save a model's parameters and buffers as safetensors, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            tensor = tensor.clone()  # safetensors refuses shared memory
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.contiguous()
    save_file(tensors, part)
    part.replace(path)


def check_writable(directory: Path) -> None:
    """Refuse a directory that cannot be made, or written to; nothing is.

    Raises:
        InputError: naming what is in the way.
    """
    there = _existing(directory)
    if not there.is_dir():
        where = "is a file" if there == directory else f"cannot be made: {there} is a file"
        raise InputError(f"--out {directory} {where}: choose a directory, or choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        why = "it may not be written to" if there == directory else f"{there} may not be written to"
        raise InputError(f"--out {directory} cannot be used ({why}): choose another")


def check_room(directory: Path, size: int) -> None:
    """Warn where a disk has less room than so many bytes."""
    free = shutil.disk_usage(_existing(directory)).free
    if free < size:
        warn(
            f"--out {directory} has room for {free / 1e6:.1f} MB, less than {size / 1e6:.1f} MB: "
            "free some space, or choose another"
        )


def _existing(directory: Path) -> Path:
    """Return a directory, or the nearest one above it that is there."""
    return next(place for place in (directory, *directory.absolute().parents) if place.exists())


class History:
    """``history.jsonl``: one line for each epoch and generation, written as it happens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; a number that is not finite is null."""
        with self.path.open("a") as file:
            file.write(json.dumps(_finite(record)) + "\n")

    def cut(self, arm: str, seed: int, keep: int) -> None:
        """Drop what a run wrote after its last checkpoint, for it will be written again."""
        if not self.path.exists():
            return
        text = self.path.read_text()
        kept, seen = [], 0
        for line in text.splitlines():
            try:
                record = json.loads(line)
                own = (record.get("arm"), record.get("seed")) == (arm, seed)
            except (ValueError, AttributeError):  # the last line of a run that was killed
                continue
            seen += own
            if not own or seen <= keep:
                kept.append(line + "\n")
        if "".join(kept) != text:  # also where half a line is left, to which the next would stick
            write_bytes(self.path, "".join(kept).encode())


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity, which Python would write nevertheless."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
