"""Decoded images, kept for the next time: whole and unharmed, or decoded again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from evostep.errors import reason, warn
from evostep.lab.weights import read_tensors, write_tensors


def cache_directory() -> Path:
    """Return `$EVOSTEP_CACHE`, else `$XDG_CACHE_HOME/evostep`, else `~/.cache/evostep`."""
    if chosen := os.environ.get("EVOSTEP_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "evostep"


def fingerprint(paths: Sequence[Path]) -> str:
    """Return a key for decoded files that changes when a source's name, size or time does."""
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(repr(("v3", facts)).encode()).hexdigest()[:16]


def read_cache(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Read tensors and title as `write_cache` wrote them; None if they are missing or damaged."""
    try:
        tensors, about = read_tensors(path)
    except (OSError, ValueError):
        return None
    return (tensors, about["title"]) if {"title", "checksum"} <= about.keys() else None


def write_cache(path: Path, tensors: dict[str, Tensor], title: str) -> None:
    """Write atomically; a cache that cannot be written costs time, and is no error."""
    from safetensors import SafetensorError

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(temporary, tensors, title=title)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        warn(
            f"cannot write the cache {path} ({reason(error)}): it will be made again next "
            f"time; set EVOSTEP_CACHE to a folder that can be written",
        )
    finally:
        with contextlib.suppress(OSError):  # it is not there after success
            temporary.unlink()
