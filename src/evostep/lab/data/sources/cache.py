"""Decoded images, kept for the next time: whole and unharmed, or decoded again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from evostep.errors import reason, warn


def cache_directory() -> Path:
    """Return `$EVOSTEP_CACHE`, else `$XDG_CACHE_HOME/evostep`, else `~/.cache/evostep`."""
    if chosen := os.environ.get("EVOSTEP_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "evostep"


def fingerprint(paths: Sequence[Path]) -> str:
    """Return a key for decoded files that changes when a source's name, size or time does."""
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(repr(("v1", facts)).encode()).hexdigest()[:16]


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].numpy().data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def read_cache(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Read tensors and title as `write_cache` wrote them; None if they are missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if metadata.get("checksum") != _checksum(tensors):
        return None
    return tensors, metadata["title"]


def write_cache(path: Path, tensors: dict[str, Tensor], title: str) -> None:
    """Write atomically; a cache that cannot be written costs time, and is no error."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"title": title, "checksum": _checksum(tensors)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        warn(
            f"cannot write the cache {path} ({reason(error)}): it will be made again next "
            f"time; set EVOSTEP_CACHE to a folder that can be written",
        )
    finally:
        with contextlib.suppress(OSError):  # it is not there after success
            temporary.unlink()
