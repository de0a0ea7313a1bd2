"""Image folders: a folder for each class, perhaps below train/, val/ and test/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from evostep.errors import InputError, reason, warn
from evostep.lab.data.sources.base import Part, Source
from evostep.lab.data.sources.pixels import decode_rgb

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")


def load(name: str, image_size: int | None) -> Source:
    """Load an image folder.

    Args:
        name: `folder:PATH`.
        image_size: height and width to which images are cropped and scaled, in pixels.

    Returns:
        The images, three channels each. val/ is the official validation set beside test/, and the
        official test set without. Parts may be called as in `PARTS`, in upper or lower case.

    Raises:
        InputError: no image size, no such folder, an image that does not decode, or parts that
            differ in their classes.
    """
    root = Path(name.removeprefix("folder:")).expanduser()
    if image_size is None:
        raise InputError(f"{name} needs an image size: give --image-size PIXELS, such as 64")
    if not root.is_dir():
        raise InputError(f"no folder {root}: give folder:PATH of a folder with one per class")
    parts, others = _parts(root)
    if not parts:
        train, names = _folder_part(root, image_size)
        return Source(root.resolve().name, train, None, names)
    if "train" not in parts:
        found = ", ".join(sorted(path.name for path in parts.values()))
        raise InputError(f"{root} has {found} but no train folder: add it")
    train, names = _folder_part(parts["train"], image_size)
    if others:
        warn(f"{root} has train and other folders, which are ignored: {', '.join(others)}")
    held_out: dict[str, Part] = {}
    for kind, path in parts.items():
        if kind == "train":
            continue
        held_out[kind], own_names = _folder_part(path, image_size)
        if own_names != names:
            odd = sorted(set(names) ^ set(own_names))
            raise InputError(
                f"{root}: {parts['train'].name} and {path.name} differ in the classes "
                f"{', '.join(odd)}: give both the same class folders"
            )
    test = held_out.get("test") or held_out.get("val")
    validation = held_out.get("val") if "test" in held_out else None
    return Source(root.resolve().name, train, test, names, validation)


def _parts(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folders of the parts by what they are for, and the names of all other folders.

    There are no parts where train has no folders of its own and stands beside others: a class.
    """
    parts: dict[str, Path] = {}
    others: list[str] = []
    for path in _folders(root):
        kind = PARTS.get(path.name.lower())
        if kind is None:
            others.append(path.name)
        elif kind in parts:
            raise InputError(
                f"{root} has both {parts[kind].name} and {path.name}: leave one of them out"
            )
        else:
            parts[kind] = path
    train = parts.get("train")
    if others and (train is None or not _folders(train)):
        return {}, []
    return parts, others


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and _counts(path.name))


def _counts(name: str) -> bool:
    """Return whether a folder counts, which hidden ones and those of archives do not."""
    return not name.startswith((".", "__"))


def _folder_part(root: Path, image_size: int) -> tuple[Part, list[str]]:
    from torchvision.datasets import ImageFolder

    class Shown(ImageFolder):  # type: ignore[misc]
        """An image folder without its hidden folders."""

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = filter(_counts, super().find_classes(directory)[0])
            classes = {name: index for index, name in enumerate(names)}
            return list(classes), classes

    if not _folders(root):
        raise InputError(
            f"{root} holds no folder of a class: put the images of each class in one of its own"
        )
    try:
        found = Shown(str(root))
    except OSError as error:
        raise InputError(
            f"{root} is no image folder ({reason(error)}): put the images of each class in a "
            f"folder of its own"
        ) from error
    images = np.empty((len(found.samples), 3, image_size, image_size), np.uint8)
    for row, (path, _) in enumerate(found.samples):
        images[row] = decode_rgb(path, path, image_size)
    return (torch.from_numpy(images), torch.tensor(found.targets)), found.classes
