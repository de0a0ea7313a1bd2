"""Real images for the lab, as uint8 tensors: loading by name, normalising, augmenting.

Where they are from is the matter of `evostep.lab.data.sources`, a file for each source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from evostep.errors import InputError, counted, unknown_name, warn
from evostep.lab.data.sources import find_reader

AUGMENTATIONS = ("none", "shift", "flip-shift")


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and their classes, with the numbers that normalise them.

    Attributes:
        name: what `load_data` was asked for, such as `"digits"`.
        title: the name for people, in tables and figures.
        inputs: `(n, channels, height, width)` uint8; an official validation set comes last.
        targets: `(n,)` int64, each below `len(classes)`; texts: `(n, length)` int64 code points.
        test_inputs: the official test set, or None where the splits have to cut one out.
        test_targets: its classes, or None.
        classes: the names of the classes; empty where targets are texts.
        mean: per channel, of `inputs` scaled to [0, 1]; 0 where targets are texts.
        std: likewise; 1 for a channel that is constant, and where targets are texts.
        validation: how many of `inputs` are the official validation set, which nothing trains on;
            0 where there is none.
        skipped: the files that were bad and left out, each with the reason.
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
    validation: int = 0
    skipped: tuple[str, ...] = ()

    @property
    def of_texts(self) -> bool:
        """Whether targets are texts, which a reader reads off images in [0, 1]."""
        return are_texts(self.targets)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Return images `(n, c, h, w)` uint8 as float32 with mean 0 and deviation 1 per channel.

        Raises:
            InputError: the images are not uint8 (normalised twice, perhaps).
        """
        if inputs.dtype != torch.uint8:
            raise InputError(f"cannot normalise {inputs.dtype} images: pass the uint8 originals")
        mean = torch.tensor(self.mean, device=inputs.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=inputs.device).view(-1, 1, 1)
        return inputs.float().div_(255).sub_(mean).div_(std)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel of `(n, c, h, w)` uint8 images, in [0, 1] units.

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


def are_texts(targets: Tensor) -> bool:
    """Return whether targets are texts, as `evostep.scoring.texts.encode` makes them."""
    return targets.ndim == 2


def normalisation(images: Tensor, targets: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation by which images are normalised: of texts they stay as they are."""
    if are_texts(targets):
        return (0.0,) * images.shape[1], (1.0,) * images.shape[1]
    return channel_statistics(images)


def load_data(
    name: str, folder: Path | None = None, *, image_size: int | None = None, skip_bad: int = 0
) -> ImageData:
    """Load images by name.

    Args:
        name: `digits` (scikit-learn's), `fashion-mnist`, `cifar10`, `folder:PATH` (one folder per
            class, optionally below train/, val/ and test/, however these are spelled; without
            test/, val/ is the test set), or `package.module:attribute`: a
            `torch.utils.data.Dataset` of (image, label), a pair (train, test) of them, or a
            function without arguments that returns either. Images are PIL images, uint8 tensors,
            or float tensors in [0, 1].
        folder: where the files of `fashion-mnist` or `cifar10` are. Without it they are looked for
            in `$EVOSTEP_DATA/NAME` and the usual places, then downloaded by torchvision.
        image_size: height and width in pixels: needed for `folder:`, allowed for PIL images from
            an import path (both cropped to a square, then scaled), refused elsewhere.
        skip_bad: how many files of `folder:` may be bad: these are left out, and a warning lists
            them.

    Returns:
        The data, on the CPU. Decoded CIFAR-10 is cached in `$EVOSTEP_CACHE`, else
        `$XDG_CACHE_HOME/evostep`, else `~/.cache/evostep`.

    Raises:
        InputError: unknown name; a file is missing, truncated or malformed; images or labels of
            the wrong kind; fewer than two classes.

    Example:
        >>> digits = load_data("digits")
        >>> digits.inputs.shape, digits.inputs.dtype, digits.test_inputs
        (torch.Size([1797, 1, 8, 8]), torch.uint8, None)
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"image size {image_size} is not positive: give pixels, such as 32")
    reader = find_reader(name)
    if folder is not None and "folder" not in reader.takes:
        warn(f"the data folder {str(folder)!r} has no effect on {name!r}: leave it out")
    if skip_bad and "skip_bad" not in reader.takes:
        warn(f"--skip-bad {skip_bad} has no effect on {name!r}: it is for folder:PATH")
    given = {"name": name, "folder": folder, "image_size": image_size, "skip_bad": skip_bad}
    source = reader.load(**{key: given[key] for key in reader.takes})
    if len(source.classes) < 2 and not are_texts(source.train[1]):
        raise InputError(
            f"{name} has one class alone ({', '.join(map(str, source.classes))}): give two or more"
        )
    if source.skipped:
        left = f"{counted(len(source.skipped), 'bad file')} left out"
        warn(f"{name}: {left}: {'; '.join(source.skipped)}")
    native = source.train[0].shape[-1]
    if "image_size" not in reader.takes and image_size not in (None, native):
        raise InputError(
            f"image size {image_size} does not fit {name}, whose images are {native} pixels "
            f"wide: leave the image size out"
        )
    test_inputs, test_targets = (None, None) if source.test is None else source.test
    inputs, targets, validation = *source.train, 0
    if source.validation is not None:
        inputs, targets = map(torch.cat, zip(source.train, source.validation, strict=True))
        validation = len(source.validation[1])
    mean, std = normalisation(*source.train)
    return ImageData(
        name,
        source.title,
        inputs,
        targets,
        test_inputs,
        test_targets,
        tuple(source.classes),
        mean=mean,
        std=std,
        validation=validation,
        skipped=tuple(source.skipped),
    )


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
