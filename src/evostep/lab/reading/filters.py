"""The usual filters before a reader of text, as OpenCV has them: what an engineer would try.

`COLOURS` and `OPERATIONS` are the tables. A colour is a colour space, and what is mixed of its
three channels; an operation takes `(h, w, 3)` uint8 and returns such an image.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evostep.errors import needs_package

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Colour:
    """A mixture of three channels, or all of them.

    Attributes:
        space: rgb, hsv or lab.
        weights: of the channels.
        offset: of the mixture.
        keep: whether the image stays as it is.
    """

    space: str = "rgb"
    weights: Sequence[float] = (0.0, 0.0, 0.0)
    offset: float = 0.0
    keep: bool = False


COLOURS: dict[str, Colour] = {
    "as it is": Colour(keep=True),
    "grey": Colour(weights=(0.299, 0.587, 0.114)),
    "red": Colour(weights=(1, 0, 0)),
    "green": Colour(weights=(0, 1, 0)),
    "blue": Colour(weights=(0, 0, 1)),
    "cb": Colour(weights=(-0.169, -0.331, 0.5), offset=0.5),
    "cr turned": Colour(weights=(-0.5, 0.419, 0.081), offset=0.5),
    "saturation turned": Colour("hsv", (0, -1, 0), 1.0),
    "value": Colour("hsv", (0, 0, 1)),
    "lightness": Colour("lab", (1, 0, 0)),
    "a turned": Colour("lab", (0, -1, 0), 1.0),
    "b turned": Colour("lab", (0, 0, -1), 1.0),
}


def _on_grey(function: Callable[[Any, Pixels], Pixels]) -> Callable[[Any, Pixels], Pixels]:
    """Return an operation on lightness for a colour image, or on the one channel of a grey one."""

    def applied(cv: Any, image: Pixels) -> Pixels:
        if np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(
            image[..., 1], image[..., 2]
        ):
            return np.repeat(function(cv, np.ascontiguousarray(image[..., 0]))[..., None], 3, 2)
        lab = cv.cvtColor(image, cv.COLOR_RGB2LAB)
        lab[..., 0] = function(cv, np.ascontiguousarray(lab[..., 0]))
        turned: Pixels = cv.cvtColor(lab, cv.COLOR_LAB2RGB)
        return turned

    return applied


def _zoom(cv: Any, image: Pixels, factor: float) -> Pixels:
    height, width = image.shape[:2]
    matrix = cv.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, factor)
    found: Pixels = cv.warpAffine(
        image, matrix, (width, height), flags=cv.INTER_CUBIC, borderMode=cv.BORDER_REPLICATE
    )
    return found


def _stretched(image: Pixels) -> Pixels:
    low, high = np.percentile(image, (2, 98))
    found: Pixels = np.clip((image - low) * (255.0 / max(high - low, 1)), 0, 255).astype(np.uint8)
    return found


def _flattened(cv: Any, image: Pixels) -> Pixels:
    wide = cv.GaussianBlur(image, (0, 0), 12).astype(np.float32)
    even: Pixels = np.clip(image / np.maximum(wide, 1) * wide.mean(), 0, 255).astype(np.uint8)
    return even


def _closed(cv: Any, image: Pixels) -> Pixels:
    found: Pixels = cv.morphologyEx(image, cv.MORPH_CLOSE, np.ones((2, 2), np.uint8))
    return found


def _unsharp(cv: Any, image: Pixels, amount: float) -> Pixels:
    found: Pixels = cv.addWeighted(
        image, 1 + amount, cv.GaussianBlur(image, (0, 0), 1.5), -amount, 0
    )
    return found


OPERATIONS: dict[str, Callable[[Any, Pixels], Pixels]] = {
    "none": lambda _, image: image,
    "median": lambda cv, image: cv.medianBlur(image, 3),
    "gauss": lambda cv, image: cv.GaussianBlur(image, (0, 0), 0.8),
    "wide gauss": lambda cv, image: cv.GaussianBlur(image, (0, 0), 1.3),
    "bilateral": lambda cv, image: cv.bilateralFilter(image, 5, 40, 2),
    "non-local means": _on_grey(lambda cv, grey: cv.fastNlMeansDenoising(grey, None, 12, 3, 11)),
    "unsharp": lambda cv, image: _unsharp(cv, image, 1.0),
    "stretch": _on_grey(lambda _, grey: _stretched(grey)),
    "equalise": _on_grey(lambda cv, grey: cv.equalizeHist(grey)),
    "clahe 2": _on_grey(lambda cv, grey: cv.createCLAHE(2.0, (2, 4)).apply(grey)),
    "clahe 4": _on_grey(lambda cv, grey: cv.createCLAHE(4.0, (2, 4)).apply(grey)),
    "flatten": _on_grey(_flattened),
    "close": _closed,
    "otsu": _on_grey(
        lambda cv, grey: cv.threshold(grey, 0, 255, cv.THRESH_BINARY + cv.THRESH_OTSU)[1]
    ),
    "adaptive threshold": _on_grey(
        lambda cv, grey: cv.adaptiveThreshold(
            grey, 255, cv.ADAPTIVE_THRESH_GAUSSIAN_C, cv.THRESH_BINARY, 21, 8
        )
    ),
    "zoom in": lambda cv, image: _zoom(cv, image, 1.12),
    "zoom out": lambda cv, image: _zoom(cv, image, 0.88),
}


def import_opencv() -> Any:
    """Return OpenCV.

    Raises:
        InputError: it is not there.
    """
    try:
        cv = importlib.import_module("cv2")
    except ImportError as error:
        raise needs_package("a usual filter", "cv2", "evostep[black-box]", error) from error
    cv.setNumThreads(1)
    return cv


def in_space(images: Tensor, space: str) -> Tensor:
    """Return RGB images `(n, 3, h, w)` in [0, 1] in another colour space, in [0, 1], too."""
    if space == "rgb":
        return images
    cv = import_opencv()
    code = cv.COLOR_RGB2HSV_FULL if space == "hsv" else cv.COLOR_RGB2LAB
    return _each(images, lambda image: cv.cvtColor(image, code))


def filtered(images: Tensor, operations: Sequence[str]) -> Tensor:
    """Return images `(n, 3, h, w)` in [0, 1] after the operations, one after the other."""
    wanted = [OPERATIONS[name] for name in operations if name != "none"]
    if not wanted:
        return images
    cv = import_opencv()

    def apply(image: Pixels) -> Pixels:
        for operation in wanted:
            image = operation(cv, image)
        return image

    return _each(images, apply)


def _each(images: Tensor, function: Callable[[Pixels], Pixels]) -> Tensor:
    pixels = (images.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found = np.stack([function(np.ascontiguousarray(image)) for image in pixels])
    return torch.from_numpy(found).permute(0, 3, 1, 2).to(images) / 255
