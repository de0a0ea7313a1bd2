"""Files of a run: written whole or not at all, and read with an error that says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from evostep.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    _replace(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


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
    os.replace(part, path)


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
            tensor = tensor.clone()  # noqa: PLW2901  (safetensors refuses shared memory)
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.contiguous()
    save_file(tensors, part)
    os.replace(part, path)


class History:
    """``history.jsonl``: one line for each epoch and generation, written as it happens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def count(self, arm: str, seed: int) -> int:
        """Count the lines of one run."""
        return sum(1 for record in self._read() if (record.get("arm"), record.get("seed")) == (arm, seed))

    def cut(self, arm: str, seed: int, keep: int) -> None:
        """Drop what a run wrote after its last checkpoint, for it will be written again."""
        kept, seen = [], 0
        records = self._read()
        for record in records:
            if (record.get("arm"), record.get("seed")) == (arm, seed):
                seen += 1
                if seen > keep:
                    continue
            kept.append(record)
        if len(kept) < len(records):
            _replace(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:  # the last line of a run that was killed
                continue
        return records


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
