"""Files of a run: written whole or not at all, and read with an error that says what to do."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from evostep.errors import DiskError, InputError, counted, reason, warn
from evostep.lab.claims import check_claims

LEFT = ".evostep-"  # begins the name of what a killed run may leave behind
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILS = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESTALE}


LARGEST = 10**300  # of a whole number: JSON has larger ones, which are no float any more


@contextmanager
def replacing(path: Path, *, before: Path | None = None) -> Iterator[Path]:
    """Yield a file to write, which takes the place of `path` when the context is left.

    It is on the disk before it does, so that no reader, no killed run and no power cut is left
    with half of a file. Folders that are missing are made; the mode is that of any new file.

    Args:
        path: of the file.
        before: takes what stands at `path` until then; None: that is gone.

    Raises:
        InputError: the place cannot be written.
        DiskError: the disk is full, or fails; the file that was there is there still. Or the
            directory that was `claimed` is there no more.
    """
    part = path.with_name(f"{LEFT}{path.name}.part")
    with writing(path):
        try:
            make_folder(path.parent)
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors gives its files to their owner alone
            sync(part)
            if before is not None and path.exists():
                path.replace(before)
            part.replace(path)
            sync(path.parent)
        finally:
            with suppress(OSError):  # after success it is not there
                part.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, and wait until they are on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of its files, is on the disk."""
    if os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a write raises into one line that names the file, the reason and the cure.

    Raises:
        InputError: the place cannot be written.
        DiskError: the disk is full, fails or has become read-only; the directory is not the one
            that was `claimed`.
    """
    try:
        check_claims(path)
        yield
    except InputError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch raises the last
        raise unwritten(path, error) from error


def unwritten(path: Path, error: Exception) -> InputError:
    """Return the error that tells in one line why a file is not there, and what to do."""
    cause = error if isinstance(error, OSError) else error.__context__
    code = cause.errno if isinstance(cause, OSError) else None
    why = os.strerror(code) if code else reason(error)
    if code in _FAILS | {errno.EROFS}:  # a disk that fails is made read-only under those who write
        cure = "mend the disk, and let it be written to"
    elif code is None or code in _FULL:
        cure = "free some space on the disk"
    else:
        return InputError(f"cannot write {path} ({why}): choose another --out")
    return DiskError(
        f"cannot write {path} ({why}): {cure}; what is finished is kept, and the same command goes "
        "on from there"
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; a number that is not finite is null."""
    write_bytes(path, (json.dumps(_finite(value), indent=1, default=str) + "\n").encode())


def read_json(path: Path, shape: Any = object, *, cure: str = "") -> Any:
    """Read JSON of a shape.

    Args:
        path: of the file.
        shape: what it must hold: see `mismatch`.
        cure: what an error advises.

    Raises:
        InputError: it cannot be read, is no JSON, or has another shape.
    """
    cure = cure or "delete it, or choose another --out"
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): {cure}") from error
    if wrong := mismatch(value, shape):
        raise InputError(f"{path} is not what evostep wrote ({wrong}): {cure}")
    return value


_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    None: "null",
    dict: "an object",
    list: "a list",
    object: "anything",
}


def mismatch(value: Any, shape: Any, where: str = "") -> str:
    """Return where a value is not of a shape, in words; empty where it is.

    Args:
        value: as JSON has it.
        shape: a type (a whole number passes as a float, a bool as neither) or None; a tuple of
            shapes, of which one must fit; ``[shape]``, a list of such; ``{str: shape}``, an object
            of such; or ``{"key": shape}``, an object with at least these keys (``"key?"`` may be
            absent).
        where: of the value in the file.

    Example:
        >>> mismatch({"runs": [{"seed": "x"}]}, {"runs": [{"seed": int}]})
        "runs[0].seed is 'x', not a whole number"
    """
    if shape is None:
        shape = type(None)
    if isinstance(shape, tuple):
        tried = [mismatch(value, one, where) for one in shape]
        # of an alternative that is an object or a list, tell what is inside
        inside = [text for text in tried if not text.startswith(f"{where or 'it'} is ")]
        return "" if "" in tried else (inside or [_is_not(value, _in_words(shape), where)])[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _is_not(value, "a list", where)
        found = (mismatch(one, shape[0], f"{where}[{i}]") for i, one in enumerate(value))
        return next(filter(None, found), "")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _is_not(value, "an object", where)
        if str in shape:
            wanted = [(key, shape[str]) for key in value]
        else:
            missing = [key for key in shape if key[-1] != "?" and key not in value]
            if missing:
                return f"{where or 'it'} lacks {missing[0]!r}"
            names = {key.rstrip("?"): kind for key, kind in shape.items()}
            wanted = [(key, kind) for key, kind in names.items() if key in value]
        dot = f"{where}." if where else ""
        found = (mismatch(value[key], kind, f"{dot}{_named(key)}") for key, kind in wanted)
        return next(filter(None, found), "")
    kinds = (int, float) if shape is float else shape
    boolean = isinstance(value, bool) and shape in (int, float)
    if isinstance(value, int) and shape in (int, float) and abs(value) > LARGEST:
        return f"{where or 'it'} is a number of {len(str(value))} digits"
    return "" if isinstance(value, kinds) and not boolean else _is_not(value, _WORDS[shape], where)


def _named(key: str) -> str:
    """Return a key as it stands in one line: a file may have any."""
    return key if key.isprintable() and len(key) <= 40 else f"{key!r:.40}"


def _is_not(value: Any, expected: str, where: str) -> str:
    return f"{where or 'it'} is {value!r:.40}, not {expected}"


def _in_words(shapes: tuple[Any, ...]) -> str:
    kinds = (one if one is None or isinstance(one, type) else type(one) for one in shapes)
    return " or ".join(_WORDS[kind] for kind in kinds)


def is_untouched(directory: Path) -> bool:
    """Return whether a directory is missing, or holds nothing but what a killed run has left."""
    return not directory.exists() or all(path.name.startswith(LEFT) for path in directory.iterdir())


def check_place(directory: Path) -> Path:
    """Refuse what can be no directory; return it, or the nearest one above it that is there.

    Raises:
        InputError: naming what is in the way.
    """
    try:
        there = _existing(directory)
        if there.is_dir():
            return there
    except OSError as error:  # of a name that is too long, or below what may not be searched
        raise InputError(
            f"--out {directory!s:.80} cannot be used ({error.strerror}): choose another"
        ) from error
    where = "is a file" if there == directory else f"cannot be made: {there} is a file"
    raise InputError(f"--out {directory} {where}: choose a directory, or choose another place")


def check_writable(directory: Path) -> None:
    """Refuse a directory that cannot be made, or written to; nothing stays behind.

    Rights do not tell it all (of a disk that is read-only, of /proc), so that it is tried.

    Raises:
        InputError: naming what is in the way.
    """
    there = check_place(directory)
    try:
        tempfile.TemporaryDirectory(prefix=LEFT, dir=there).cleanup()
    except OSError as error:
        if (
            error.errno in _FULL | _FAILS
        ):  # a plan may be read with no room for it, which is told there
            return
        why = "it" if there == directory else str(there)
        raise InputError(
            f"--out {directory} cannot be used ({why} may not be written to, "
            f"{error.strerror}): choose another"
        ) from error


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
        """Add one line; a number that is not finite is null.

        Raises:
            InputError: it cannot be written.
            DiskError: the disk is full, or fails.
        """
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(_finite(record)) + "\n")

    def sync(self) -> None:
        """Wait until all lines are on the disk: a checkpoint that counts them comes next.

        Raises:
            DiskError: the disk fails.
        """
        if self.path.exists():
            with writing(self.path):
                sync(self.path)

    def cut(self, arm: str, seed: int, keep: int) -> None:
        """Drop what a run wrote after its last checkpoint, for it will be written again.

        Lines that the checkpoint counts and that are not there are lost, and a warning says so.

        Raises:
            InputError: it cannot be read or written.
            DiskError: the disk is full, or fails.
        """
        if not self.path.exists():
            return self._warn_of_lost(arm, seed, keep)
        whole, own = True, 0
        with writing(self.path), self.path.open("rb") as lines:
            for line, kept, is_own in lines_kept(lines, arm, seed, keep):
                whole, own = whole and kept == line, own + is_own
        if own < keep:
            self._warn_of_lost(arm, seed, keep - own)
        if whole:
            return
        with self.path.open("rb") as lines, replacing(self.path) as part, part.open("wb") as file:
            file.writelines(kept for _, kept, _ in lines_kept(lines, arm, seed, keep))

    def _warn_of_lost(self, arm: str, seed: int, lines: int) -> None:
        if lines:
            lost = counted(lines, "line")
            warn(f"{self.path} lacks {lost} of {arm}, seed {seed}: they were lost or deleted")


def lines_kept(
    lines: Iterable[bytes], arm: str, seed: int, keep: int
) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield each line of a history, what is kept of it, and whether it is of this run.

    Never are all of them in memory at once.
    """
    name, seen = json.dumps(arm).encode(), 0
    for line in lines:
        kept = line.rstrip(b"\r\n") + b"\n"  # the last one may lack it, and the next would stick
        own = False
        if name in line or not line.rstrip().endswith(b"}"):
            try:
                record = json.loads(line)
                own = (record.get("arm"), record.get("seed")) == (arm, seed)
                seen += own
                kept = b"" if own and seen > keep else kept
            except (ValueError, AttributeError, RecursionError):  # of a run that was killed
                kept = b""
        yield line, kept, own


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity, which Python would write nevertheless."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
