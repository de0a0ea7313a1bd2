"""Sources of data: one source, one file with a function `load`, and a row in the table.

They share `places` (where files are looked for), `cache` (what took long to decode) and `pixels`
(decoding).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evostep.errors import unknown_name
from evostep.lab.data.sources import (
    cifar10,
    dataset,
    digits,
    fashion_mnist,
    image_folder,
    text_lines,
)
from evostep.lab.data.sources.base import Source

__all__ = ["SOURCES", "Reader", "find_reader"]


@dataclass(frozen=True)
class Reader:
    """How a source is read.

    Attributes:
        load: called with what it takes, by keyword.
        summary: one line.
        takes: what of the name as written, the folder of its files, the size to which images are
            scaled, and how many files may be bad.
        find: returns the place of its files, None where they are nowhere; None: a source without
            files of its own.
        cure: how to get files that are nowhere.
    """

    load: Callable[..., Source]
    summary: str
    takes: tuple[Literal["name", "folder", "image_size", "skip_bad"], ...] = ()
    find: Callable[[], Path | None] | None = None
    cure: str = ""


_FOLDER, _IMPORT_PATH = "folder:PATH", "package.module:attribute"
_TEXT_LINES = "text-lines:SERIES"

SOURCES: dict[str, Reader] = {
    "digits": Reader(
        digits.load,
        "1,797 digits of 8x8 pixels that scikit-learn carries with it",
        find=digits.find,
        cure=digits.CURE,
    ),
    "fashion-mnist": Reader(
        fashion_mnist.load,
        "clothes in 28x28 grey pixels, from IDX files",
        ("folder",),
        fashion_mnist.find,
        fashion_mnist.CURE,
    ),
    "cifar10": Reader(
        cifar10.load,
        "32x32 coloured pixels, from parquet or pickled files",
        ("folder",),
        cifar10.find,
        cifar10.CURE,
    ),
    _TEXT_LINES: Reader(
        text_lines.load,
        "codes on labels, drawn: 48x80 coloured pixels and the text on each",
        ("name",),
        text_lines.find,
        text_lines.CURE,
    ),
    _FOLDER: Reader(
        image_folder.load,
        "a folder of images for each class",
        takes=("name", "image_size", "skip_bad"),
    ),
    _IMPORT_PATH: Reader(
        dataset.load, "a torch Dataset of (image, label)", takes=("name", "image_size")
    ),
}


def find_reader(name: str) -> Reader:
    """Return how the data of a name is read.

    Raises:
        InputError: no source has this name; the nearest is suggested.

    Example:
        >>> find_reader("folder:pets").summary
        'a folder of images for each class'
    """
    if name in SOURCES:
        return SOURCES[name]
    if name.startswith("folder:"):
        return SOURCES[_FOLDER]
    if name.partition(":")[0] == "text-lines":
        return SOURCES[_TEXT_LINES]
    if ":" in name:
        return SOURCES[_IMPORT_PATH]
    raise unknown_name("data", name, SOURCES, choices=", ".join(SOURCES))
