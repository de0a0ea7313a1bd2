"""Image folders: a folder for each class, perhaps below train/ and test/ or val/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from evostep.errors import InputError, reason
from evostep.lab.data.sources.base import Part, Source
from evostep.lab.data.sources.pixels import decode_rgb


def load(name: str, image_size: int | None) -> Source:
    """Load an image folder.

    Args:
        name: `folder:PATH`.
        image_size: height and width to which images are cropped and scaled, in pixels.

    Returns:
        The images, three channels each; test/, else val/, is the official test set.

    Raises:
        InputError: no image size, no such folder, an image that does not decode, or parts that
            differ in their classes.
    """
    root = Path(name.removeprefix("folder:")).expanduser()
    if image_size is None:
        raise InputError(f"{name} needs an image size: give --image-size PIXELS, such as 64")
    if not root.is_dir():
        raise InputError(f"no folder {root}: give folder:PATH of a folder with one per class")
    subfolders = {path.name for path in root.iterdir() if path.is_dir()}
    if "train" not in subfolders and subfolders and subfolders <= {"test", "val"}:
        raise InputError(f"{root} has {', '.join(sorted(subfolders))} but no train folder: add it")
    if "train" not in subfolders:
        train, classes = _folder_part(root, image_size)
        return Source(root.resolve().name, train, None, classes)
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
    return Source(root.resolve().name, train, test, classes)


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
        images[row] = decode_rgb(path, path, image_size)
    return (torch.from_numpy(images), torch.tensor(found.targets)), found.classes
