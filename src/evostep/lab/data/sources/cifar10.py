"""CIFAR-10: things and animals in 32x32 coloured pixels, from parquet files or pickled batches.

Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evostep.errors import InputError, reason
from evostep.lab.data.sources.base import Source
from evostep.lab.data.sources.cache import cache_directory, fingerprint, read_cache, write_cache
from evostep.lab.data.sources.pixels import decode_rgb
from evostep.lab.data.sources.places import download, not_found, places_of
from evostep.unpacking import check_unpacked

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CURE = (
    "give --data-dir FOLDER with train.parquet and test.parquet (columns img.bytes, label), or set "
    "EVOSTEP_DATA to the folder that holds it as cifar10"
)
_PARQUET, _BATCHES = ("train.parquet", "test.parquet"), "cifar-10-batches-py"


def find(folder: Path | None = None) -> Path | None:
    """Return the folder that holds the files, as `load` looks for it; None: there is none."""
    places = places_of("cifar10", folder)
    return _first(places if folder is not None else [*places, cache_directory() / "torchvision"])


def _first(places: Sequence[Path]) -> Path | None:
    names = (*_PARQUET, _BATCHES)
    return next((place for place in places if any((place / n).exists() for n in names)), None)


def load(folder: Path | None) -> Source:
    """Load CIFAR-10.

    Args:
        folder: holds train.parquet and test.parquet in the layout of Hugging Face, or torchvision's
            cifar-10-batches-py; None: look in `$EVOSTEP_DATA/cifar10`, then download.

    Returns:
        The images; the title says so where a parquet file holds JPEG images, for they are not
        the originals. What was decoded from parquet is cached.

    Raises:
        InputError: a file is missing, truncated or malformed.
    """
    places = places_of("cifar10", folder)
    place = _first(places)
    if place is None:
        if folder is not None:
            raise not_found("CIFAR-10", places, CURE)
        return _read_batches(download("CIFAR10", "CIFAR-10", places, CURE))  # whole, or got again
    paths = [place / name for name in _PARQUET]
    return _read_parquet(paths) if any(p.exists() for p in paths) else _read_batches(place)


def _read_batches(root: Path) -> Source:
    from torchvision.datasets import CIFAR10

    parts = []
    for train in (True, False):
        try:
            dataset = CIFAR10(root=str(root), train=train)
        except (OSError, RuntimeError) as error:
            batches = root / _BATCHES
            raise InputError(
                f"cannot read {batches} ({reason(error)}): get it again, or remove it"
            ) from error
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        parts.append((images, torch.tensor(dataset.targets)))
    return Source("CIFAR-10", parts[0], parts[1], CLASSES)


def _read_parquet(paths: Sequence[Path]) -> Source:
    for path in paths:
        if not path.is_file():
            raise InputError(f"missing file {path}: CIFAR-10 needs it, so put it there")
    cache = cache_directory() / f"cifar10-{fingerprint(paths)}.safetensors"
    decoded = read_cache(cache)
    if decoded is None:
        parts = [_decode_parquet(path) for path in paths]
        tensors = {
            f"{part}_{kind}": tensor
            for part, (*both, _) in zip(("train", "test"), parts, strict=True)
            for kind, tensor in zip(("inputs", "targets"), both, strict=True)
        }
        recompressed = any(jpeg for *_, jpeg in parts)
        decoded = tensors, "JPEG-recompressed CIFAR-10" if recompressed else "CIFAR-10"
        write_cache(cache, *decoded)
    tensors, title = decoded
    train, test = (
        (tensors[f"{part}_inputs"], tensors[f"{part}_targets"]) for part in ("train", "test")
    )
    return Source(title, train, test, CLASSES)


def _decode_parquet(path: Path) -> tuple[Tensor, Tensor, bool]:
    """Decode one file in the Hugging Face layout; also tells whether any image is a JPEG."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    jpeg, row = False, 0
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow)
            n = file.metadata.num_rows
            check_unpacked(path, n * 3 * 32 * 32, "get the file again")
            images, labels = np.empty((n, 3, 32, 32), np.uint8), np.empty(n, np.int64)
            unpacked = 0
            for batch in file.iter_batches(batch_size=1024, columns=["img", "label"]):
                unpacked += batch.nbytes
                check_unpacked(path, unpacked, "get the file again")
                first = row
                for raw in batch.column("img").field("bytes").to_pylist():
                    images[row] = _decode_image(raw, path, row)
                    jpeg |= raw.startswith(b"\xff\xd8")
                    row += 1
                given = batch.column("label").to_numpy(zero_copy_only=False)
                if not ((given >= 0) & (given <= 9)).all():  # a missing label is NaN here
                    raise InputError(f"{path} has a label outside 0 to 9: get the file again")
                labels[first:row] = given
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {path} ({reason(error)}): get the file again") from error
    if n == 0:
        raise InputError(f"{path} has no rows: get the file again")
    return torch.from_numpy(images), torch.from_numpy(labels), jpeg


def _check_columns(path: Path, schema: Any) -> None:
    import pyarrow as pa

    found = {field.name: field.type for field in schema}
    image, label = found.get("img"), found.get("label")
    image_fields = {f.name for f in image} if image and pa.types.is_struct(image) else set()
    if "bytes" not in image_fields or not (label and pa.types.is_integer(label)):
        has = ", ".join(f"{name}: {kind}" for name, kind in found.items()) or "no columns"
        raise InputError(
            f"{path} has the columns ({has}): it needs img, a struct with bytes, and label, "
            f"whole numbers, as on Hugging Face"
        )


def _decode_image(raw: bytes | None, path: Path, row: int) -> NDArray[np.uint8]:
    pixels = decode_rgb(io.BytesIO(raw or b""), f"image {row} of {path}")
    if pixels.shape != (3, 32, 32):
        _, height, width = pixels.shape
        raise InputError(
            f"image {row} of {path} is {width}x{height}, not 32x32: give CIFAR-10, or use folder:"
        )
    return pixels
