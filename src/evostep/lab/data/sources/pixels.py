"""Images as Pillow opens them, as bytes: three channels or one, never clipped without a word."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evostep.errors import InputError, reason

# What image folders hold. Others are left out on purpose: for PostScript, Pillow runs a program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# A picture of a camera (MPO, read as JPEG) may hold a second one, too, and is no film.
_FILMS = ("GIF", "PNG", "TIFF", "WEBP")


def decode_rgb(
    file: Any, named: str, image_size: int | None = None, *, films: list[str] | None = None
) -> NDArray[np.uint8]:
    """Decode one image file to `(3, h, w)`, cropped and scaled to `image_size` where given.

    Args:
        file: a path or a stream of bytes.
        named: what an error calls it.
        image_size: height and width in pixels.
        films: the names of files with several images, of which the first one counts, are added.

    Raises:
        InputError: it is none of `FORMATS`, does not decode, has more than 8 bits per channel, or
            would take so much memory (179 million pixels) that it is a bomb.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # of half as many pixels as are refused
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()  # the formats, once
            with Image.open(file, formats=FORMATS) as image:
                refuse_deep(image, named)
                if films is not None and image.format in _FILMS and _frames(image) > 1:
                    films.append(named)
                    image.seek(0)
                return to_bytes(_as_shown(image).convert("RGB"), image_size)
    except InputError:
        raise
    except Exception as error:  # Pillow's formats raise a dozen kinds
        # Pillow puts the address of the stream in its message, which helps nobody.
        why = type(error).__name__ if "BytesIO" in str(error) else reason(error)
        raise InputError(f"{named} does not decode ({why}): replace or remove it") from error


def size_of(path: Path) -> tuple[int, int] | None:
    """Return width and height as the head of an image file tells; None: it is bad."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                return int(image.width), int(image.height)
    except Exception:  # Pillow's formats raise a dozen kinds
        return None


def _frames(image: Any) -> int:
    return int(getattr(image, "n_frames", 1))


def refuse_deep(image: Any, named: str) -> None:
    """Refuse more than 8 bits per channel, which Pillow would clip to white without a word.

    Raises:
        InputError: naming the mode of the image.
    """
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{named} has Pillow's mode {image.mode!r}: convert it to 8 bits")


def to_bytes(image: Any, image_size: int | None) -> NDArray[np.uint8]:
    """Return the `(c, h, w)` bytes of a PIL image: one channel if it is grey, else three."""
    from PIL import Image, ImageOps

    image = _as_shown(image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _as_shown(image: Any) -> Any:
    """Return an image as a viewer shows it: turned as its EXIF says, on white where transparent."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        grey = image.mode in ("L", "LA", "La", "1")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    return image
