"""Any `torch.utils.data.Dataset` of the user's own, by import path."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError, reason
from evostep.lab.data.sources.base import Part, Source
from evostep.lab.data.sources.pixels import refuse_deep, to_bytes
from evostep.lab.imports import load_attribute


def load(name: str, image_size: int | None) -> Source:
    """Load what an import path names.

    Args:
        name: `package.module:attribute`: a Dataset of (image, label), a pair (train, test) of them,
            or a function without arguments that returns either. Images are PIL images, uint8
            tensors, or float tensors in [0, 1].
        image_size: height and width to which PIL images are cropped and scaled, in pixels.

    Raises:
        InputError: it cannot be imported, or has images or labels of the wrong kind.
    """
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
    return Source(name, train, test, classes)


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
        image, labels[i] = _image(item[0], f"{name}[{i}]", image_size), _label(item[1], name, i)
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


def _image(image: object, named: str, image_size: int | None) -> Tensor:
    """Return one image of a user's Dataset as `(c, h, w)` uint8."""
    from PIL import Image

    if isinstance(image, Image.Image):
        refuse_deep(image, named)
        return torch.tensor(to_bytes(image, image_size))
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
