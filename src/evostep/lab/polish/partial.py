"""What a run has finished so far, in its directory: a run that was killed goes on from there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError, warn
from evostep.lab.checkpoints import CorruptError, drop_checkpoint, load_checkpoint, save_checkpoint
from evostep.lab.polish.directory import ARGUMENTS, FOLDER, told
from evostep.lab.storage import read_json, write_json

_CPU = torch.device("cpu")


class Partial:
    """Part of a directory of results, made with the first thing that is kept.

    Args:
        out: the directory.
        identity: what must be equal for the run to go on.

    Raises:
        InputError: what is there is of other arguments.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self._folder, self._identity = out / FOLDER, identity
        self._since, self._before = time.perf_counter(), 0.0
        if not (self._folder / ARGUMENTS).is_file():
            return
        was, now = read_json(self._folder / ARGUMENTS, dict), json.loads(json.dumps(identity))
        if was != now:
            raise InputError(
                f"--out {out} holds a run of other arguments that is not finished "
                f"({told(was, now)}): choose another --out, or delete {self._folder}"
            )

    @property
    def seconds(self) -> float:
        """How long the run has taken, what is kept of those that were killed included."""
        return self._before + time.perf_counter() - self._since

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return what was saved under a name; None: nothing was, or it is damaged, with a warning.

        Raises:
            InputError: it is of a format that this version does not read.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            state = load_checkpoint(path, _CPU)
        except CorruptError as error:
            drop_checkpoint(path)
            warn(f"{error.what}: it is made again")
            return None
        self._before = max(self._before, state["seconds"])
        tensors: dict[str, Tensor] = state["tensors"]
        return tensors

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors, whole or not at all."""
        self.mark()
        kept = {key: value.cpu().contiguous() for key, value in tensors.items()}
        save_checkpoint(self._path(name), {"tensors": kept, "seconds": self.seconds})

    def mark(self) -> None:
        """Write down whose directory it is."""
        if not (self._folder / ARGUMENTS).is_file():
            write_json(self._folder / ARGUMENTS, dict(self._identity))

    def drop(self) -> None:
        """Delete all of it: the run is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pt"
