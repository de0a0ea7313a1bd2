"""The directory of results: written whole or not at all, and never over something else."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evostep.errors import InputError, reason
from evostep.lab.options import flag
from evostep.lab.storage import check_place, check_writable, claimed, read_json

FORMAT = 1
RESULTS = "results.json"
STAGE = ".evostep-"  # begins the name of a folder that a killed run has left
_WRITING = f"{STAGE}writing-"


def read_finished(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record in a finished directory; None where nothing is there yet.

    Args:
        out: the directory.
        identity: what must be equal for the results to be those that are asked for.

    Raises:
        InputError: results of other arguments; something else is there.
    """
    check_place(out)
    if not out.exists() or not any(path.name[: len(STAGE)] != STAGE for path in out.iterdir()):
        return None
    if not (out / RESULTS).is_file():
        raise InputError(f"--out {out} is not empty and holds no results: choose another")
    record = read_json(out / RESULTS)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"--out {out} holds results of something else: choose another")
    was, now = record.get("arguments"), json.loads(json.dumps(identity))
    if was != now:
        found = told(was if isinstance(was, dict) else {}, now)
        raise InputError(
            f"--out {out} holds results of other arguments ({found}): choose another --out"
        )
    return record


def told(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words which argument was another one."""
    name = next((name for name in now if was.get(name, now) != now[name]), "command")
    before, after = was.get(name), now.get(name)
    if str(after).startswith("sha256:") and str(before).startswith("sha256:"):
        return f"the file of {flag(name)} has changed"
    shown = ("not given" if value is None else str(value)[:60] for value in (before, after))
    return f"{flag(name)} was {next(shown)}, now {next(shown)}"


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield a folder to write in, which becomes `out` when the context is left without an error.

    It is made at once, in the nearest folder that there is, so that a place that cannot be written
    is told before the work is done. What killed runs have left there is deleted.

    Raises:
        InputError: the place cannot be written.
    """
    out = out.absolute()
    check_writable(out)
    there = check_place(out)
    try:
        _sweep(there, out.parent)
        folder = Path(tempfile.mkdtemp(prefix=_WRITING, dir=there))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({reason(error)}): choose another") from (
            error
        )
    try:
        with claimed(folder):  # as long as we live
            yield folder
        folder.chmod(there.stat().st_mode)  # mkdtemp's own is for its owner alone
        try:
            if out.exists():  # it is empty, and may be where the user stands
                for path in sorted(folder.iterdir(), key=lambda path: path.name == RESULTS):
                    path.replace(out / path.name)
            else:
                out.parent.mkdir(parents=True, exist_ok=True)
                folder.replace(out)
        except OSError as error:
            raise InputError(
                f"--out {out} cannot be written ({reason(error)}): choose another"
            ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(*places: Path) -> None:
    """Delete folders that nobody writes in any more: their runs were killed."""
    for folder in {folder for place in places for folder in place.glob(f"{_WRITING}*")}:
        with suppress(InputError), claimed(folder):
            shutil.rmtree(folder, ignore_errors=True)
