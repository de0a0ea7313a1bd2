"""The directory of results: written whole or not at all, and never over something else.

A run at work has a folder of its own in it, which keeps other processes out, and holds what is
finished so far and what is being written. When all is done the results move out of it,
``results.json`` last, and it goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evostep.errors import InputError
from evostep.lab.claims import claimed
from evostep.lab.options import flag
from evostep.lab.storage import (
    LEFT,
    check_place,
    check_writable,
    is_untouched,
    read_json,
    sync,
    unwritten,
    writing,
)

FORMAT = 1
RESULTS = "results.json"
FOLDER = f"{LEFT}run"
ARGUMENTS = "arguments.json"  # in the folder: of which run it is


def read_finished(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record in a finished directory; None where nothing is there yet.

    Args:
        out: the directory.
        identity: what must be equal for the results to be those that are asked for.

    Raises:
        InputError: results of other arguments; something else is there.
    """
    check_place(out)
    if is_untouched(out):
        return None
    if not (out / RESULTS).is_file():
        if (out / FOLDER / ARGUMENTS).is_file():
            return None  # killed as its results were moving in
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
    """Yield a folder to write in; without an error, its files move to `out` in the end.

    It is made at once, so that a place that cannot be written is told before the work is done, and
    other processes are kept out of `out`. Where the work fails, and nothing of it was kept, nothing
    stays behind.

    Raises:
        InputError: the place cannot be written, or another process is at work in it.
        DiskError: the disk is full, fails or has become read-only.
    """
    shown, out = out, out.absolute()
    check_writable(out)
    own = out / FOLDER
    made = [folder for folder in (own, *own.parents) if not folder.exists()]
    stage, done = own / "results", False
    try:
        with claimed(own, shown):
            shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
            try:
                with writing(stage):
                    stage.mkdir()
                yield stage
                _move_in(stage, out)
                done = True
            finally:
                shutil.rmtree(own if done else stage, ignore_errors=True)
    finally:
        for folder in () if done else made:
            with suppress(OSError):  # it holds what is finished so far
                folder.rmdir()


def _move_in(stage: Path, out: Path) -> None:
    """Move all files, what tells that they are there last."""
    try:
        for path in sorted(stage.iterdir(), key=lambda path: path.name == RESULTS):
            sync(out)  # what has moved before
            path.replace(out / path.name)
        sync(out)
    except OSError as error:
        raise unwritten(out, error) from error
