"""Checkpoints: what a run goes on from. The last two are kept, and each knows whether it is whole.

``NAME.pt`` is the newest and ``NAME.before.pt`` the one before. The checksum is of the contents and
stands beside them: torch reads a file in which bits have changed without a word.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evostep.checksums import checksum
from evostep.errors import InputError, warn
from evostep.lab.storage import replacing, writing
from evostep.unpacking import size_of_zip, too_large


class CorruptError(InputError):
    """A checkpoint is damaged, and there is no other.

    Attributes:
        what: names it and the damage.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: delete it, and the part of the run that it holds is done again")
        self.what = what


FORMAT = 1  # those from before have neither number nor checksum, and are read


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save the state of a run, whole or not at all; it loads with ``weights_only=True``.

    What stood at the path becomes the one before.

    Raises:
        InputError: the place cannot be written.
        DiskError: the disk is full, or fails; what was there is there still.
    """
    whole = {**state, "format": FORMAT, "checksum": checksum(state)}
    # an open file, for torch has no words for what happens to a path
    with replacing(path, before=_before(path)) as part, part.open("wb") as file:
        torch.save(whole, file)


def has_checkpoint(path: Path) -> bool:
    """Return whether there is one to load; the newest is missing where a kill fell between two."""
    return path.exists() or _before(path).exists()


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Load the newest state that is whole.

    Where the newest is damaged a warning says so, and the one before takes its place: what it lacks
    is done again, to the same bits.

    Raises:
        CorruptError: neither is whole.
        InputError: it is of a format that this version does not read.
    """
    before = _before(path)
    try:
        if not path.exists() and before.exists():
            with writing(path):
                before.replace(path)
        return _read(path, device)
    except InputError:
        raise
    except Exception as error:  # torch raises half a dozen kinds
        first = str(error).strip().partition("\n")[0].partition(". ")[0]
        why = f"checkpoint {path} is corrupt ({first or type(error).__name__})"
        try:
            state = _read(before, device)
        except Exception:
            raise CorruptError(why) from error
    warn(f"{why}: the one before is taken, and what it lacks is done again")
    with writing(path):
        before.replace(path)
    return state


def drop_checkpoint(path: Path) -> None:
    """Delete a checkpoint and the one before, if they are there.

    Raises:
        DiskError: the disk fails, or has become read-only.
    """
    for one in (path, _before(path)):
        with writing(one):
            one.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}.before{path.suffix}")


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    if why := too_large(path, size_of_zip(path)):
        raise ValueError(why)
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    number, known = state.pop("format", None), state.pop("checksum", None)
    if number is None:
        with zipfile.ZipFile(path) as file:
            if known is not None or file.testzip() is not None:
                raise ValueError("its contents are not those that were saved")
        return state
    if isinstance(number, int) and number > FORMAT:
        raise InputError(
            f"checkpoint {path} has the format {number}, this version of evostep reads {FORMAT}: "
            "go on with the version that saved it"
        )
    if checksum(state) != known:
        raise ValueError("its contents are not those that were saved")
    return state
