"""Fashion-MNIST: clothes in 28x28 grey pixels, from IDX files, gzipped or not.

Xiao, Rasul and Vollgraf, Fashion-MNIST, https://arxiv.org/abs/1708.07747; the format:
http://yann.lecun.com/exdb/mnist
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evostep.errors import InputError, reason
from evostep.lab.data.sources.base import Part, Source
from evostep.lab.data.sources.cache import cache_directory
from evostep.lab.data.sources.places import download, not_found, places_of
from evostep.unpacking import check_unpacked

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CURE = "install the Debian package dataset-fashion-mnist, or give --data-dir FOLDER"
_TITLE = "Fashion-MNIST"
_BELOW = Path("FashionMNIST", "raw")  # as torchvision keeps it


def find(folder: Path | None = None) -> Path | None:
    """Return the folder that holds the files, as `load` looks for it; None: there is none."""
    places = places_of("fashion-mnist", folder, DEBIAN)
    candidates = [*places, *(place / _BELOW for place in places)]
    if folder is None:
        candidates.append(cache_directory() / "torchvision" / _BELOW)
    return next((c for c in candidates if _idx_path(c, "train-images-idx3-ubyte")), None)


def load(folder: Path | None) -> Source:
    """Load Fashion-MNIST.

    Args:
        folder: holds the four IDX files, or torchvision's FashionMNIST/raw with them; None: look in
            `$EVOSTEP_DATA/fashion-mnist`, in the Debian package and in torchvision's cache, then
            download.

    Raises:
        InputError: a file is missing, truncated or malformed.
    """
    found = find(folder)
    if found is None:
        places = places_of("fashion-mnist", folder, DEBIAN)
        if folder is not None:
            missing = "train-images-idx3-ubyte.gz is not there"
            raise not_found(_TITLE, places, f"{missing}; {CURE}")
        found = download("FashionMNIST", _TITLE, places, CURE) / _BELOW
    train, test = (_idx_part(found, stem) for stem in ("train", "t10k"))
    return Source(_TITLE, train, test, CLASSES)


def _idx_path(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _idx_part(folder: Path, stem: str) -> Part:
    arrays = []
    for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
        path = _idx_path(folder, f"{stem}-{kind}-ubyte")
        if path is None:
            raise InputError(f"missing file {folder}/{stem}-{kind}-ubyte.gz: add it")
        arrays.append(_read_idx(path, dimensions))
    images, labels = arrays
    if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max() > 9:
        raise InputError(
            f"{folder}: the {stem} files hold images {images.shape} and {len(labels)} labels up to "
            f"{labels.max()}, not as many 28x28 images as labels 0 to 9: get the four files again"
        )
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: 0, 0, 8 (unsigned byte), dimensions, big-endian sizes, values."""
    correction, start = "get the file again", 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(start)
            if len(raw) == start and raw[:4] == bytes([0, 0, 8, dimensions]):
                shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dimensions, offset=4))
                expected = start + int(np.prod(shape, dtype=object))
                check_unpacked(path, expected, f"gunzip it, or {correction}")
                raw += file.read(expected - start + 1)  # one more, that it is not longer
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({reason(error)}): {correction}") from error
    if raw[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(
            f"{path} begins with {raw[:4].hex() or 'nothing'} where an IDX file of {dimensions} "
            f"dimension(s) has 0000080{dimensions}: {correction}"
        )
    if len(raw) < start:
        raise InputError(f"{path} ends within its header: {correction}")
    if len(raw) != expected or len(raw) == start:
        found = f"{len(raw)} bytes" if len(raw) <= expected else "more bytes"
        raise InputError(f"{path} has {found}, not {expected} as it says: {correction}")
    # A copy, since torch cannot share what Python holds as immutable bytes.
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()
