"""Directories of results that are ours: one process at a time, and no other one by mistake."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evostep.errors import DiskError, InputError, reason

_CLAIMS: dict[Path, int] = {}  # directories that are ours -> their open descriptors
_AGAIN_SECONDS = 0.05


@contextmanager
def claimed(directory: Path, shown: Path | None = None, *, patience: float = 0.0) -> Iterator[None]:
    """Make a directory and keep other processes out of it, until the context is left or we die.

    Processes that are forked meanwhile do not hold it. What is written below goes there alone: not
    into another directory that has taken its name.

    Args:
        directory: of results.
        shown: what errors call it; None: as it is.
        patience: seconds for which another process may still be at work in it.

    Raises:
        InputError: another process is at work in it, or it cannot be made.
        DiskError: it lies in one that is claimed, and is there no more.
    """
    shown = shown or directory
    check_claims(directory)  # or a directory that has gone away would be made again
    at_work = InputError(
        f"another evostep is at work in {shown}: wait until it has ended, or choose another --out"
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"--out {shown} cannot be made ({reason(error)}): choose another") from (
            error
        )
    owner, where = os.getpid(), directory.absolute()
    try:
        with suppress(ImportError):  # where there is none (Windows), nobody is kept out
            import fcntl

            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise at_work from None
                    time.sleep(_AGAIN_SECONDS)
                    continue
                except OSError:
                    pass  # a file system without locks
                break
        if not _is_still(where, descriptor):  # who held it has just deleted it
            raise at_work
        _CLAIMS[where] = descriptor
        yield
    finally:
        if os.getpid() == owner:  # a forked process has closed its own
            if _CLAIMS.get(where) == descriptor:
                del _CLAIMS[where]
            os.close(descriptor)


def keep_to(directory: Path) -> None:
    """Write below a directory that another process has claimed, and not into one in its place.

    This holds until the process ends, or keeps to the directory anew.

    Raises:
        InputError: it is not there.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"{directory} is not here ({reason(error)}): it must be on a file system that all "
            "machines share, and be called the same on each"
        ) from error
    if (before := _CLAIMS.get(directory.absolute())) is not None:
        os.close(before)
    _CLAIMS[directory.absolute()] = descriptor


def _forget_claims() -> None:
    """Close what a forked process has inherited: a lock dies with its owner, not with its heirs."""
    for descriptor in _CLAIMS.values():
        os.close(descriptor)
    _CLAIMS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_claims)


def _is_still(directory: Path, descriptor: int) -> bool:
    """Return whether a path leads to the directory that was opened."""
    try:
        return os.path.samestat(directory.stat(), os.fstat(descriptor))
    except OSError:
        return False


def check_claims(path: Path) -> None:
    """Refuse to write below a path that leads to another directory than the one claimed.

    Raises:
        DiskError: it does.
    """
    above = path.absolute().parents
    for directory, descriptor in _CLAIMS.items():
        if directory in above and not _is_still(directory, descriptor):
            raise DiskError(
                f"{directory} is not the directory any more in which this run began (deleted, "
                "moved or unmounted): bring it back, and the same command goes on from there"
            )
