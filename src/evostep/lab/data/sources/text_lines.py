"""Lines of text, drawn: short codes on a label, as one camera sees them.

A code is printed in ink that takes mostly blue out of the light of a yellowed label, crossed by red
pen, lit unevenly, blurred, and photographed with noise that the three channels share in part; then
it is saved as JPEG with colour at half the width. The constants were set on series 0, by looking at
usual filters and at mixtures of colours by hand, before any method searched: so that no channel
alone shows the print without the pen, and a mixture does.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evostep.errors import InputError
from evostep.lab.data.sources.base import Part, Source
from evostep.lab.data.sources.cache import cache_directory, fingerprint, read_cache, write_cache
from evostep.scoring.texts import encode

CURE = "pip install 'evostep[lab]', whose matplotlib carries the typefaces"
LETTERS = "ABCDEFGHJKLMNPRTUVWXY346789"  # none that is another's double, such as O and 0
LENGTH, HEIGHT, WIDTH = 4, 48, 80
LINES = 4000  # of a series
TYPEFACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold")

# red, green and blue of light in [0, 1]
PAPER, PAPER_SPREAD = (0.80, 0.76, 0.62), 0.03
INK = (-0.12, -0.20, -0.42)  # what full ink takes away
PEN = (-0.03, -0.38, -0.38)
NOISE, SHARED_NOISE = (0.03, 0.03, 0.045), 0.03


def find() -> Path | None:
    """Return the folder of matplotlib's typefaces; None: it is not installed."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"


def load(name: str) -> Source:
    """Draw a series of lines, or read it from the cache; there is no official test set.

    Args:
        name: ``text-lines:SERIES``: another whole number is another series.

    Raises:
        InputError: a series that is no whole number.
    """
    _, _, number = name.partition(":")
    if not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise InputError(f"{name} names no series: write text-lines:0, or another whole number")
    series = int(number)
    files = [Path(__file__), *_files()]
    cache = cache_directory() / f"text-lines-{series}-{fingerprint(files)}.safetensors"
    found = read_cache(cache)
    if found is None:
        images, targets = drawn(series, LINES)
        found = {"images": images, "targets": targets}, f"Drawn text, series {series}"
        write_cache(cache, *found)
    tensors, title = found
    return Source(title, (tensors["images"], tensors["targets"]), None, ())


def drawn(series: int, lines: int) -> Part:
    """Draw the first lines of a series.

    Example:
        >>> images, targets = drawn(0, 2)
        >>> images.shape, targets.shape
        (torch.Size([2, 3, 48, 80]), torch.Size([2, 4]))
    """
    pairs = [draw(np.random.default_rng((series, i))) for i in range(lines)]
    images = torch.from_numpy(np.stack([image for image, _ in pairs]))
    return images, encode([text for _, text in pairs], LENGTH)


def draw(rng: np.random.Generator) -> tuple[NDArray[np.uint8], str]:
    """Return one image `(3, HEIGHT, WIDTH)` and its text, as the generator has them."""
    text = "".join(rng.choice(list(LETTERS), LENGTH))
    paper = np.array(PAPER) + rng.normal(0, PAPER_SPREAD, 3)
    light = paper + _ink(text, rng)[..., None] * np.array(INK) * rng.uniform(0.6, 1.0)
    light = light + _strokes(rng)[..., None] * np.array(PEN) * rng.uniform(0.6, 1.0)
    seen = _blurred(light * _shade(rng)[..., None], rng.uniform(0.6, 1.0))
    return _photographed(seen, rng), text


def _ink(text: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how much ink is where, (HEIGHT, WIDTH) in [0, 1]: the text, turned a little."""
    from PIL import Image, ImageDraw

    face = TYPEFACES[rng.integers(len(TYPEFACES))]
    size = int(rng.integers(25, 30))
    font = _font(face, size)
    left, top, right, bottom = font.getbbox(text)
    while right - left > WIDTH - 4:
        size -= 1
        font = _font(face, size)
        left, top, right, bottom = font.getbbox(text)
    free_x, free_y = WIDTH - 2 - (right - left), HEIGHT - 8 - (bottom - top)
    x = 1 + rng.uniform(0, max(free_x, 0)) - left
    y = 4 + rng.uniform(0.2, 0.8) * free_y - top
    page = Image.new("L", (WIDTH, HEIGHT), 0)
    ImageDraw.Draw(page).text((x, y), text, fill=255, font=font)
    page = page.rotate(rng.uniform(-2, 2), Image.Resampling.BICUBIC)
    return np.asarray(page, dtype=np.float64) / 255


@functools.cache
def _font(face: str, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(_files()[TYPEFACES.index(face)]), size)


def _files() -> list[Path]:
    folder = find()
    if folder is None:
        raise InputError(f"drawn text needs the typefaces of matplotlib: {CURE}")
    return [folder / f"{face}.ttf" for face in TYPEFACES]


def _strokes(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how much pen is where, (HEIGHT, WIDTH) in [0, 1]: two to four bent lines."""
    from PIL import Image, ImageDraw

    page = Image.new("L", (WIDTH, HEIGHT), 0)
    pen = ImageDraw.Draw(page)
    for _ in range(rng.integers(2, 5)):
        xs = np.linspace(-2, WIDTH + 2, 4)
        ys = rng.uniform(12, HEIGHT - 12) + rng.uniform(-9, 9, 4)
        pen.line(list(zip(xs, ys, strict=True)), fill=255, width=int(rng.integers(2, 4)))
    return np.asarray(page, dtype=np.float64) / 255


def _shade(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the light on the label: it falls off to one side."""
    across = np.linspace(-1, 1, WIDTH) * rng.uniform(-0.15, 0.15)
    down = np.linspace(-1, 1, HEIGHT)[:, None] * rng.uniform(-0.08, 0.08)
    return 1 - 0.1 + across + down


def _blurred(light: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Return light `(h, w, c)` behind a lens out of focus: a Gaussian, its edges repeated."""
    from scipy.ndimage import gaussian_filter

    blurred: NDArray[np.float64] = gaussian_filter(
        light, sigma, mode="nearest", radius=4, axes=(0, 1)
    )
    return blurred


def _photographed(light: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return what a camera saves of light `(h, w, 3)`: noise, 8 bits, JPEG with halved colour."""
    from PIL import Image

    own = rng.normal(0, 1, light.shape) * np.array(NOISE)
    shared = rng.normal(0, SHARED_NOISE, light.shape[:2])[..., None]
    pixels = np.clip((light + own + shared) * 255, 0, 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(70, 91)), subsampling=1)
    with Image.open(file) as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
