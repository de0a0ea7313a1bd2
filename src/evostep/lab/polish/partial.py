"""What a run has finished so far, in its directory: a run that was killed goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from evostep.errors import InputError, reason
from evostep.lab.polish.directory import STAGE, told
from evostep.lab.storage import read_json, replacing, write_json
from evostep.lab.weights import read_tensors, write_tensors

FOLDER = f"{STAGE}run"
_ARGUMENTS = "arguments.json"


class Partial:
    """A folder in the directory of results, made with the first thing that is kept.

    Args:
        out: the directory.
        identity: what must be equal for the run to go on.

    Raises:
        InputError: what is there is of other arguments.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self._folder, self._identity = out / FOLDER, identity
        if not (self._folder / _ARGUMENTS).is_file():
            return
        was, now = read_json(self._folder / _ARGUMENTS, dict), json.loads(json.dumps(identity))
        if was != now:
            raise InputError(
                f"--out {out} holds a run of other arguments that is not finished "
                f"({told(was, now)}): choose another --out, or delete {self._folder}"
            )

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return what was saved under a name; None: nothing was.

        Raises:
            InputError: the file cannot be read.
        """
        path = self._folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            return read_tensors(path)[0]
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read ({reason(error)}): delete it, and it is made again"
            ) from error

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors, whole or not at all."""
        if not (self._folder / _ARGUMENTS).is_file():
            write_json(self._folder / _ARGUMENTS, dict(self._identity))
        with replacing(self._folder / f"{name}.safetensors") as part:
            write_tensors(part, {key: x.cpu().contiguous() for key, x in tensors.items()})

    def drop(self) -> None:
        """Delete all of it: the run is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)
