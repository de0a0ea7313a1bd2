"""Real images for the lab, as uint8 tensors: built-in data, image folders, any Dataset."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import operator
import os
import uuid
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from evostep.errors import InputError, reason, unknown_name
from evostep.lab.imports import load_attribute

DATA_NAMES = ("digits", "fashion-mnist", "cifar10")
AUGMENTATIONS = ("none", "shift", "flip-shift")

FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")

Part = tuple[Tensor, Tensor]  # images (n, c, h, w) uint8, targets (n,) int64


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and their classes, with the numbers that normalise them.

    Attributes:
        name: what `load_data` was asked for, such as `"digits"`.
        title: the name for people, in tables and figures.
        inputs: `(n, channels, height, width)` uint8.
        targets: `(n,)` int64, each below `len(classes)`.
        test_inputs: the official test set, or None where the splits have to cut one out.
        test_targets: its classes, or None.
        classes: the names of the classes.
        mean: per channel, of `inputs` scaled to [0, 1].
        std: likewise; 1 for a channel that is constant.
    """

    name: str
    title: str
    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor | None
    test_targets: Tensor | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, inputs: Tensor) -> Tensor:
        """Turn images `(n, c, h, w)` uint8 into float32 with mean 0 and deviation 1 per channel.

        Raises:
            InputError: the images are not uint8 (normalised twice, perhaps).
        """
        if inputs.dtype != torch.uint8:
            raise InputError(f"cannot normalise {inputs.dtype} images: pass the uint8 originals")
        mean = torch.tensor(self.mean, device=inputs.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=inputs.device).view(-1, 1, 1)
        return inputs.float().div_(255).sub_(mean).div_(std)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of `(n, c, h, w)` uint8 images, in [0, 1] units.

    Counted from the exact histogram, so neither order nor number of threads matters. A constant
    channel has deviation 1, so that dividing by it is harmless.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        counts = torch.zeros(256, dtype=torch.float64)
        for chunk in channel.split(4096):  # bincount widens what it counts to eight bytes
            counts += torch.bincount(chunk.reshape(-1), minlength=256)
        share = counts / counts.sum()
        mean = (share * levels).sum()
        means.append(mean.item())
        deviations.append((share * (levels - mean).square()).sum().sqrt().item())
    return tuple(means), tuple(s if s > 1e-9 else 1.0 for s in deviations)


def load_data(name: str, folder: Path | None = None, *, image_size: int | None = None) -> ImageData:
    """Load images by name.

    Args:
        name: `digits` (scikit-learn's), `fashion-mnist`, `cifar10`, `folder:PATH` (one folder per
            class, optionally below train/ and test/ or val/), or `package.module:attribute`: a
            `torch.utils.data.Dataset` of (image, label), a pair (train, test) of them, or a
            function without arguments that returns either. Images are PIL images, uint8 tensors,
            or float tensors in [0, 1].
        folder: where the files of `fashion-mnist` or `cifar10` are. Without it they are looked for
            in `$EVOSTEP_DATA/NAME` and the usual places, then downloaded by torchvision.
        image_size: height and width in pixels: needed for `folder:`, allowed for PIL images from
            an import path (both cropped to a square, then scaled), refused elsewhere.

    Returns:
        The data, on the CPU. Decoded CIFAR-10 is cached in `$EVOSTEP_CACHE`, else
        `$XDG_CACHE_HOME/evostep`, else `~/.cache/evostep`.

    Raises:
        InputError: unknown name; a file is missing, truncated or malformed; images or labels of
            the wrong kind.

    Example:
        >>> digits = load_data("digits")
        >>> digits.inputs.shape, digits.inputs.dtype, digits.test_inputs
        (torch.Size([1797, 1, 8, 8]), torch.uint8, None)
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"image size {image_size} is not positive: give pixels, such as 32")
    if folder is not None and name not in ("fashion-mnist", "cifar10"):
        warnings.warn(
            f"the data folder {str(folder)!r} has no effect on {name!r}: leave it out", stacklevel=2
        )
    if name == "digits":
        data = _digits()
    elif name == "fashion-mnist":
        data = _fashion_mnist(folder)
    elif name == "cifar10":
        data = _cifar10(folder)
    elif name.startswith("folder:"):
        return _image_folder(name, Path(name.removeprefix("folder:")).expanduser(), image_size)
    elif ":" in name:
        return _from_import_path(name, image_size)
    else:
        choices = f"{', '.join(DATA_NAMES)}, folder:PATH, package.module:attribute"
        raise unknown_name("data", name, (*DATA_NAMES, "folder:PATH"), choices=choices)
    native = data.inputs.shape[-1]
    if image_size not in (None, native):
        raise InputError(
            f"image size {image_size} does not fit {name}, whose images are {native} pixels "
            f"wide: leave the image size out"
        )
    return data


def augment(images: Tensor, generator: torch.Generator, *, kind: str) -> Tensor:
    """Shift, and perhaps mirror, each image at random.

    Args:
        images: `(n, c, h, w)` float, not changed.
        generator: the only source of randomness; the same state gives the same images.
        kind: `none`; `shift`: pad with zeros and crop at random, by up to h // 8 pixels each way;
            `flip-shift`: also mirror half of the images left to right.

    Returns:
        New images of the same shape (with `none` the very same tensor).

    Raises:
        InputError: unknown kind.

    Example:
        >>> images = torch.rand(4, 1, 8, 8)
        >>> augment(images, torch.Generator().manual_seed(0), kind="shift").shape
        torch.Size([4, 1, 8, 8])
    """
    if kind not in AUGMENTATIONS:
        raise unknown_name("augmentation", kind, AUGMENTATIONS)
    if kind == "none":
        return images
    n, channels, height, width = images.shape
    reach = height // 8

    def draw(below: int) -> Tensor:
        drawn = torch.randint(below, (n, 1), generator=generator, device=generator.device)
        return drawn.to(images.device)

    rows = draw(2 * reach + 1) + torch.arange(height, device=images.device)  # (n, h)
    columns = draw(2 * reach + 1) + torch.arange(width, device=images.device)  # (n, w)
    if kind == "flip-shift":
        columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    padded = F.pad(images, (reach,) * 4)
    which = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, channels, 1, 1)
    return padded[which, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]


def _finish(
    name: str, title: str, train: Part, test: Part | None, classes: Sequence[str]
) -> ImageData:
    mean, std = channel_statistics(train[0])
    test_inputs, test_targets = (None, None) if test is None else test
    return ImageData(
        name, title, *train, test_inputs, test_targets, tuple(classes), mean=mean, std=std
    )


def _cache_directory() -> Path:
    if chosen := os.environ.get("EVOSTEP_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "evostep"


def _places(name: str, folder: Path | None, *usual: Path) -> list[Path]:
    """Where to look: in the folder that was given alone, else in the usual places."""
    if folder is not None:
        return [Path(folder).expanduser()]
    root = os.environ.get("EVOSTEP_DATA")
    return [*([Path(root).expanduser() / name] if root else []), *usual]


def _not_found(title: str, places: Sequence[Path], correction: str) -> InputError:
    return InputError(f"no {title} in {', '.join(map(str, places))}: {correction}")


def _download(dataset: str, title: str, places: Sequence[Path], correction: str) -> Path:
    """Have torchvision download a dataset into the cache; returns the root that it is under."""
    import torchvision

    root = _cache_directory() / "torchvision"
    try:
        for train in (True, False):
            getattr(torchvision.datasets, dataset)(root=str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:
        why = f"the download failed ({reason(error)})"
        raise _not_found(title, places, f"{why}; {correction}") from error
    return root


# Digits


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # 0..16 to 0..255
    targets = torch.from_numpy(bunch.target.astype(np.int64))
    part = (torch.from_numpy(images).unsqueeze(1), targets)
    return _finish("digits", "Digits (8x8)", part, None, [str(digit) for digit in range(10)])


# Fashion-MNIST: IDX files, http://yann.lecun.com/exdb/mnist


def _fashion_mnist(folder: Path | None) -> ImageData:
    title = "Fashion-MNIST"
    places = _places("fashion-mnist", folder, DEBIAN_FASHION)
    below = Path("FashionMNIST", "raw")  # as torchvision keeps it
    candidates = [*places, *(place / below for place in places)]
    if folder is None:
        candidates.append(_cache_directory() / "torchvision" / below)
    found = [c for c in candidates if _idx_path(c, "train-images-idx3-ubyte") is not None]
    if not found:
        correction = "install the Debian package dataset-fashion-mnist, or give --data-dir FOLDER"
        if folder is not None:
            missing = "train-images-idx3-ubyte.gz is not there"
            raise _not_found(title, places, f"{missing}; {correction}")
        found = [_download("FashionMNIST", title, places, correction) / below]
    train, test = (_idx_part(found[0], stem) for stem in ("train", "t10k"))
    return _finish("fashion-mnist", title, train, test, FASHION_CLASSES)


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
    correction = "get the file again"
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({reason(error)}): {correction}") from error
    if raw[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(
            f"{path} begins with {raw[:4].hex() or 'nothing'} where an IDX file of {dimensions} "
            f"dimension(s) has 0000080{dimensions}: {correction}"
        )
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise InputError(f"{path} ends within its header: {correction}")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dimensions, offset=4))
    expected = start + int(np.prod(shape, dtype=object))
    if len(raw) != expected or len(raw) == start:
        raise InputError(f"{path} has {len(raw)} bytes, not {expected} as it says: {correction}")
    # A copy, since torch cannot share what Python holds as immutable bytes.
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


# CIFAR-10


def _cifar10(folder: Path | None) -> ImageData:
    beside = Path("shared", "data", "cifar10")
    roots = [Path(__file__).resolve().parents[3], Path.cwd()]
    usual = list(dict.fromkeys(root.parent / beside for root in roots))
    places = _places("cifar10", folder, *usual)
    correction = (
        "give --data-dir FOLDER with train.parquet and test.parquet (columns img.bytes, label)"
    )
    for place in places:
        paths = [place / "train.parquet", place / "test.parquet"]
        if any(path.exists() for path in paths):
            return _cifar10_parquet(paths)
        if (place / "cifar-10-batches-py").is_dir():
            return _cifar10_torchvision(place)
    if folder is not None:
        raise _not_found("CIFAR-10", places, correction)
    return _cifar10_torchvision(_download("CIFAR10", "CIFAR-10", places, correction))


def _cifar10_torchvision(root: Path) -> ImageData:
    from torchvision.datasets import CIFAR10

    parts = []
    for train in (True, False):
        try:
            dataset = CIFAR10(root=str(root), train=train)
        except (OSError, RuntimeError) as error:
            batches = root / "cifar-10-batches-py"
            raise InputError(
                f"cannot read {batches} ({reason(error)}): get it again, or remove it"
            ) from error
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        parts.append((images, torch.tensor(dataset.targets)))
    return _finish("cifar10", "CIFAR-10", parts[0], parts[1], CIFAR10_CLASSES)


def _cifar10_parquet(paths: Sequence[Path]) -> ImageData:
    for path in paths:
        if not path.is_file():
            raise InputError(f"missing file {path}: CIFAR-10 needs it, so put it there")
    cache = _cache_directory() / f"cifar10-{_fingerprint(paths)}.safetensors"
    decoded = _read_cache(cache)
    if decoded is None:
        parts = [_decode_parquet(path) for path in paths]
        tensors = {
            f"{part}_{kind}": tensor
            for part, (*both, _) in zip(("train", "test"), parts, strict=True)
            for kind, tensor in zip(("inputs", "targets"), both, strict=True)
        }
        recompressed = any(jpeg for *_, jpeg in parts)
        decoded = tensors, "JPEG-recompressed CIFAR-10" if recompressed else "CIFAR-10"
        _write_cache(cache, *decoded)
    tensors, title = decoded
    train, test = (
        (tensors[f"{part}_inputs"], tensors[f"{part}_targets"]) for part in ("train", "test")
    )
    return _finish("cifar10", title, train, test, CIFAR10_CLASSES)


def _decode_parquet(path: Path) -> tuple[Tensor, Tensor, bool]:
    """Decode one file in the Hugging Face layout; also tells whether any image is a JPEG."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    jpeg, row = False, 0
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow)
            n = file.metadata.num_rows
            images, labels = np.empty((n, 3, 32, 32), np.uint8), np.empty(n, np.int64)
            for batch in file.iter_batches(batch_size=1024, columns=["img", "label"]):
                first = row
                for raw in batch.column("img").field("bytes").to_pylist():
                    images[row] = _decode_cifar_image(raw, path, row)
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


def _decode_cifar_image(raw: bytes | None, path: Path, row: int) -> NDArray[np.uint8]:
    pixels = _rgb(io.BytesIO(raw or b""), f"image {row} of {path}")
    if pixels.shape != (3, 32, 32):
        _, height, width = pixels.shape
        raise InputError(
            f"image {row} of {path} is {width}x{height}, not 32x32: give CIFAR-10, or use folder:"
        )
    return pixels


def _rgb(file: Any, named: str, image_size: int | None = None) -> NDArray[np.uint8]:
    """Decode one image file to `(3, h, w)`, cropped and scaled to `image_size` where given."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            _refuse_deep(image, named)
            return _pixels(image.convert("RGB"), image_size)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow puts the address of the stream in its message, which helps nobody.
        why = type(error).__name__ if "BytesIO" in str(error) else reason(error)
        raise InputError(f"{named} does not decode ({why}): replace or remove it") from error


def _refuse_deep(image: Any, named: str) -> None:
    """Refuse more than 8 bits per channel, which Pillow would clip to white without a word."""
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{named} has Pillow's mode {image.mode!r}: convert it to 8 bits")


def _pixels(image: Any, image_size: int | None) -> NDArray[np.uint8]:
    """The `(c, h, w)` bytes of a PIL image: one channel if it is grey, else three."""
    from PIL import Image, ImageOps

    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _fingerprint(paths: Sequence[Path]) -> str:
    """A key for decoded files that changes when a source's name, size or time does."""
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(repr(("v1", facts)).encode()).hexdigest()[:16]


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].numpy().data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def _read_cache(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """What `_write_cache` wrote, or None if it is missing or damaged."""
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


def _write_cache(path: Path, tensors: dict[str, Tensor], title: str) -> None:
    """Write atomically; a cache that cannot be written costs time, and is no error."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"title": title, "checksum": _checksum(tensors)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"cannot write the cache {path} ({reason(error)}): CIFAR-10 will be decoded again "
            f"next time; set EVOSTEP_CACHE to a folder that can be written",
            stacklevel=2,
        )
    finally:
        with contextlib.suppress(OSError):  # it is not there after success
            temporary.unlink()


# Image folders


def _image_folder(name: str, root: Path, image_size: int | None) -> ImageData:
    if image_size is None:
        raise InputError(f"{name} needs an image size: give --image-size PIXELS, such as 64")
    if not root.is_dir():
        raise InputError(f"no folder {root}: give folder:PATH of a folder with one per class")
    subfolders = {path.name for path in root.iterdir() if path.is_dir()}
    if "train" not in subfolders and subfolders and subfolders <= {"test", "val"}:
        raise InputError(f"{root} has {', '.join(sorted(subfolders))} but no train folder: add it")
    if "train" not in subfolders:
        train, classes = _folder_part(root, image_size)
        return _finish(name, root.resolve().name, train, None, classes)
    train, classes = _folder_part(root / "train", image_size)
    test = None
    held_out = next((part for part in ("test", "val") if part in subfolders), None)
    if held_out is not None:
        test, test_classes = _folder_part(root / held_out, image_size)
        if test_classes != classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise InputError(
                f"{root}: train and {held_out} differ in the classes {', '.join(odd)}: give "
                f"both the same class folders"
            )
    return _finish(name, root.resolve().name, train, test, classes)


def _folder_part(root: Path, image_size: int) -> tuple[Part, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(root))
    except OSError as error:
        raise InputError(
            f"{root} is no image folder ({reason(error)}): put the images of each class in a "
            f"folder of its own"
        ) from error
    images = np.empty((len(found.samples), 3, image_size, image_size), np.uint8)
    for row, (path, _) in enumerate(found.samples):
        images[row] = _rgb(path, path, image_size)
    return (torch.from_numpy(images), torch.tensor(found.targets)), found.classes


# Any Dataset


def _from_import_path(name: str, image_size: int | None) -> ImageData:
    value = load_attribute(name)
    if callable(value) and not _is_dataset(value):
        value = _call(f"{name}()", value)
    pair = value if isinstance(value, tuple) else (value,)
    if len(pair) not in (1, 2) or not all(map(_is_dataset, pair)):
        kinds = " and ".join(type(part).__name__ for part in pair) or "an empty tuple"
        raise InputError(
            f"{name} gives {kinds}: it must be a Dataset with a length, a pair (train, test) of "
            f"them, or a function without arguments that returns either"
        )
    train = _dataset_part(name, pair[0], image_size)
    test = None
    if len(pair) == 2:
        test = _dataset_part(f"{name} (test)", pair[1], image_size)
        if test[0].shape[1:] != train[0].shape[1:]:
            shapes = f"{tuple(train[0].shape[1:])} and {tuple(test[0].shape[1:])}"
            raise InputError(f"{name}: train and test images differ, {shapes}: give one shape")
    highest = int(max(part[1].max() for part in (train, test) if part is not None))
    classes = [str(label) for label in getattr(pair[0], "classes", None) or range(highest + 1)]
    if highest >= len(classes):
        raise InputError(
            f"{name} has the label {highest} but {len(classes)} classes: number them from 0"
        )
    return _finish(name, name, train, test, classes)


def _is_dataset(value: object) -> bool:
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return sized and not isinstance(value, (type, tuple))


def _call(named: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # a user's function may raise anything
        raise InputError(f"{named} failed ({reason(error)}): correct it") from error


def _dataset_part(name: str, dataset: Any, image_size: int | None) -> Part:
    n = len(dataset)
    if n == 0:
        raise InputError(f"{name} is empty: give a Dataset with examples")
    images, labels = torch.empty(0), torch.empty(n, dtype=torch.int64)
    for i in range(n):
        item = _call(f"{name}[{i}]", partial(operator.getitem, dataset, i))
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise InputError(f"{name}[{i}] is no pair: return (image, label)")
        image, labels[i] = _bytes(item[0], f"{name}[{i}]", image_size), _label(item[1], name, i)
        if i == 0:
            images = torch.empty((n, *image.shape), dtype=torch.uint8)
        if image.shape != images.shape[1:]:
            first, other = tuple(images.shape[1:]), tuple(image.shape)
            raise InputError(
                f"{name}[{i}] has the shape {other}, {name}[0] {first}: return one shape (PIL "
                f"images of one mode are resized by --image-size)"
            )
        images[i] = image
    return images, labels


def _label(label: Any, name: str, i: int) -> int:
    try:
        index = operator.index(label)
    except TypeError:
        index = -1
    if index < 0:
        raise InputError(f"{name}[{i}] has the label {label!r}: return a whole number from 0 up")
    return index


def _bytes(image: object, named: str, image_size: int | None) -> Tensor:
    """One image of a user's Dataset as `(c, h, w)` uint8."""
    from PIL import Image

    if isinstance(image, Image.Image):
        _refuse_deep(image, named)
        return torch.tensor(_pixels(image, image_size))
    if not isinstance(image, Tensor):
        kind = type(image).__name__
        raise InputError(f"{named} has an image of type {kind}: return a tensor or a PIL image")
    if image.ndim == 2:
        image = image.unsqueeze(0)
    channels_last = image.ndim == 3 and min(image.shape[:2]) > 4 >= image.shape[2]
    if image.ndim != 3 or channels_last:
        raise InputError(f"{named} has the shape {tuple(image.shape)}: return channels first, CHW")
    if image_size is not None and image.shape[1:] != (image_size, image_size):
        raise InputError(
            f"{named} is a tensor of {tuple(image.shape)}, which image size {image_size} cannot "
            f"change: resize in the Dataset, or return PIL images"
        )
    if image.dtype == torch.uint8:
        return image
    low, high = image.min().item(), image.max().item()
    if not (image.is_floating_point() and low >= 0 and high <= 1):
        raise InputError(
            f"{named} has {image.dtype} values from {low:.3g} to {high:.3g}: return uint8, or "
            f"floats in [0, 1] (leave normalising to the lab)"
        )
    return image.mul(255).round().to(torch.uint8)
