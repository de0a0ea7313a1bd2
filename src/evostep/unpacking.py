"""How much a compressed file may unpack to: a small one that promises much is not believed.

deflate packs zeros a thousand times as small, and what repeats itself can be packed without end. So
what a file would take is read from what it says of itself, before any of it is unpacked.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from evostep.errors import InputError

FREE = 2**28  # bytes that any file may unpack to
TIMES = 100  # beyond that: so many times its own size; images and numbers take 1 to 20


def too_large(path: Path, size: int) -> str:
    """Return in words why a file may not unpack to so many bytes; empty where it may."""
    packed = path.stat().st_size
    most = max(FREE, TIMES * packed)
    if size <= most:
        return ""
    return (
        f"{path} would unpack from {packed / 1e6:,.3f} MB to {size / 1e6:,.0f} MB or more, and at "
        f"most {most / 1e6:,.0f} MB are believed"
    )


def check_unpacked(path: Path, size: int, cure: str) -> None:
    """Refuse a file that would unpack to too many bytes.

    Args:
        path: of the file.
        size: what it says that it holds, or what has come of it so far.
        cure: what to do where it is meant so.

    Raises:
        InputError: naming the file and both sizes.
    """
    if why := too_large(path, size):
        raise InputError(f"{why}: {cure}")


def size_of_zip(path: Path) -> int:
    """Return the bytes that the files in a zip archive have unpacked; 0 of another file."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())
