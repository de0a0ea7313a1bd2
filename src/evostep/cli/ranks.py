"""Commands under torchrun: the process group is opened and closed here, and nowhere else.

The first rank alone prints, writes and holds the directory. The others work on a copy of what
stands there, in a folder of their own that is deleted: so they find the same checkpoints, and no
file system has to be shared. Gradient epochs are the same on every rank; evolution is shared.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from evostep.errors import InputError, printable, reason

SHARED = ("train", "compare")  # commands that go over ranks
_FAILED = "evostep/failed"  # set by the first rank when it has told what is wrong
_PATIENCE = 3.0  # seconds in which it does
_PICTURES = (".html", ".png", ".svg")  # nobody goes on from these


def world() -> tuple[int, int]:
    """Return the rank of this process and how many there are, as torchrun says; (0, 1) without.

    Raises:
        ValueError: what the environment says makes no sense.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if given["WORLD_SIZE"] in (None, "1"):
        return 0, 1
    try:
        rank, size = int(given["RANK"] or ""), int(given["WORLD_SIZE"] or "")
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise InputError(
            f"the environment has RANK={given['RANK']} and WORLD_SIZE={given['WORLD_SIZE']}: start "
            "several processes by torchrun, or unset WORLD_SIZE"
        )
    return rank, size


@contextmanager
def first_rank_speaks() -> Iterator[None]:
    """Let only the first rank print: the others are told the same, and have the same errors."""
    try:
        rank, _ = world()
    except InputError:
        rank = 0  # `over_ranks` tells
    if rank == 0:
        yield
        return
    nowhere = open(os.devnull, "w")  # noqa: PTH123, SIM115  # it has no path on Windows
    with nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def over_ranks(command: str, own: Any) -> Iterator[None]:
    """Run a command in the group that the environment tells of, if it tells of several processes.

    Args:
        command: its name.
        own: its arguments; ``out`` becomes a copy on all ranks but the first.

    Raises:
        ValueError: a command for one process; ranks that do not find each other, or a port in use.
    """
    rank, size = world()
    if size == 1:
        yield
        return
    if command not in SHARED:
        raise InputError(
            f"evostep {command} runs in one process, and WORLD_SIZE is {size}: start it without "
            f"torchrun (over ranks go {' and '.join(SHARED)})"
        )
    import torch.distributed as dist

    _join()
    store = dist.distributed_c10d._get_default_store()
    try:
        with tempfile.TemporaryDirectory(prefix="evostep-rank-") as folder:
            content = _hand_out(own.out)
            if rank > 0:
                own.out = Path(folder) / "out"
                _unpack(content, own.out)
            yield
    except Exception as error:
        if rank == 0:
            store.set(_FAILED, "1")
        elif not _is_told(store):
            text = " ".join(printable(reason(error)).split())
            print(f"evostep: error: rank {rank}: {text}", file=sys.__stderr__)
        raise
    finally:
        dist.destroy_process_group()


def check_arms(arms: Iterable[Any], *, apart: bool = False) -> None:
    """Refuse, before anything is run, what would do on each rank what it does on one.

    Args:
        arms: that are to be run.
        apart: whether their runs are done in processes of their own.

    Raises:
        ValueError: there are several ranks, and a population among the arms, or runs apart.
    """
    if world()[1] == 1:
        return
    if apart:
        raise InputError(
            "--jobs and --executor do runs in other processes, which do not go over ranks: leave "
            "them out, or start without torchrun"
        )
    for arm in arms:
        if arm.procedure == "population":
            raise InputError(
                f"arm {arm.label!r}: the individuals of a population do not go over ranks: leave "
                "the arm out, or start without torchrun"
            )


def _join() -> None:
    """Open the process group.

    Raises:
        ValueError: it cannot be.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it is told in one line
    from datetime import timedelta

    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from evostep.ranks import TIMEOUT_VARIABLE, default_timeout

    seconds = default_timeout()
    if torch.cuda.is_available():
        card = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        torch.cuda.set_device(card)
    try:
        timeout = timedelta(seconds=seconds)
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun's, of one machine
            # its store may hold addresses of ranks that it has started before, and that have died
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.distributed_c10d.PrefixStore(f"attempt {attempt}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        where = ":".join(os.environ.get(f"MASTER_{part}", "?") for part in ("ADDR", "PORT"))
        text = reason(error)
        if "EADDRINUSE" in text or "already in use" in text:
            why, cure = "the port is in use", "choose another (torchrun --master-port)"
        elif "?" in where or isinstance(error, ValueError):
            why, cure = text, "start them by torchrun"
        else:
            why = f"they have not all come within {seconds:g} s, or it cannot be reached"
            cure = f"start all of them, or raise {TIMEOUT_VARIABLE} (seconds)"
        raise InputError(
            f"the {os.environ['WORLD_SIZE']} ranks do not meet at {where}, {why}: {cure}"
        ) from error


def _hand_out(directory: Path) -> bytes:
    """Return what stands in the first rank's directory, as an archive."""
    from evostep.ranks import Ranks, is_first

    return Ranks.of(None, None).share(_packed(directory) if is_first() else b"")


def _packed(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix not in _PICTURES:
                archive.add(path, str(path.relative_to(directory)), recursive=False)
    return buffer.getvalue()


def _unpack(content: bytes, directory: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        if archive.getnames():
            archive.extractall(directory, filter="data")


def _is_told(store: Any) -> bool:
    """Return whether the first rank tells what is wrong: it has failed, too."""
    until = time.monotonic() + _PATIENCE
    try:
        while not store.check([_FAILED]):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
    except RuntimeError:  # it has gone, with the store
        pass
    return True
