"""Image folders: a folder for each class, perhaps below train/, val/ and test/."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from evostep.errors import InputError, counted, warn
from evostep.lab.data.sources.base import Part, Source
from evostep.lab.data.sources.pixels import decode_rgb, size_of

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PARTS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")


@dataclass
class _Noticed:
    """What was noticed of the files of a folder.

    Attributes:
        may_be_bad: how many files may.
        bad: those that were, each with the reason.
        films: those with several images.
        outside: those that lie outside the folder, by links.
    """

    may_be_bad: int
    bad: list[str] = field(default_factory=list)
    films: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def pass_over(self, error: InputError) -> None:
        """Pass over a bad file, or raise its error: it is one too many."""
        if len(self.bad) == self.may_be_bad:
            more = f" ({counted(len(self.bad), 'bad file')} before it)" if self.bad else ""
            told, _, cure = str(error).rpartition(": ")
            cure = f"{cure}, or leave out up to N bad files by --skip-bad N"
            raise InputError(f"{told}{more}: {cure}") from error
        self.bad.append(str(error).rpartition(": ")[0])

    def tell(self, root: Path) -> None:
        """Warn of what is read, and may not be what was meant."""
        if self.films:
            warn(
                f"{root}: {counted(len(self.films), 'file')} with several images, such as "
                f"{self.films[0]}: of each the first image counts"
            )
        if self.outside:
            warn(
                f"{root}: {counted(len(self.outside), 'link')} to what lies outside of it, such as "
                f"{self.outside[0]}: it is read, and may change without this folder"
            )


def load(name: str, image_size: int | None, skip_bad: int) -> Source:
    """Load an image folder.

    Args:
        name: `folder:PATH`.
        image_size: height and width to which images are cropped and scaled, in pixels; None: they
            are squares of one size.
        skip_bad: how many files may be bad: these are left out.

    Returns:
        The images, three channels each. val/ is the official validation set beside test/, and the
        official test set without. Parts may be called as in `PARTS`, in upper or lower case.

    Raises:
        InputError: no image size for images of several, no such folder, more bad images than may
            be, a class without any, results of evostep in the place of a class, a link to a folder
            that it lies in, or parts that differ in their classes.
    """
    root = Path(name.removeprefix("folder:")).expanduser()
    if not root.is_dir():
        raise InputError(f"no folder {root}: give folder:PATH of a folder with one per class")
    noticed = _Noticed(skip_bad)
    parts, others = _parts(root)
    if not parts:
        files = _classes(root, root, noticed)
        _warn_of_no_classes(root, files)
        size = image_size or _common_size(root, [files])
        train = _read(root, files, size, noticed)
        noticed.tell(root)
        return Source(root.resolve().name, train, None, list(files), skipped=noticed.bad)
    if "train" not in parts:
        found = ", ".join(sorted(path.name for path in parts.values()))
        raise InputError(f"{root} has {found} but no train folder: add it")
    in_order = sorted(parts, key=lambda kind: kind != "train")
    listed = {kind: _classes(root, parts[kind], noticed) for kind in in_order}
    names = list(listed["train"])
    size = image_size or _common_size(root, listed.values())
    train = _read(parts["train"], listed["train"], size, noticed)
    if others:
        warn(f"{root} has train and other folders, which are ignored: {', '.join(others)}")
    held_out: dict[str, Part] = {}
    for kind, path in parts.items():
        if kind == "train":
            continue
        held_out[kind] = _read(path, listed[kind], size, noticed)
        if list(listed[kind]) != names:
            odd = sorted(set(names) ^ set(listed[kind]))
            raise InputError(
                f"{root}: {parts['train'].name} and {path.name} differ in the classes "
                f"{', '.join(odd)}: give both the same class folders"
            )
    test = held_out.get("test") or held_out.get("val")
    validation = held_out.get("val") if "test" in held_out else None
    noticed.tell(root)
    return Source(root.resolve().name, train, test, names, validation, noticed.bad)


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


Files = Mapping[str, Sequence[Path]]  # of each class


def _classes(root: Path, part: Path, noticed: _Noticed) -> Files:
    """Return the images of each class of a part."""
    folders = _folders(part)
    if not folders:
        raise InputError(
            f"{part} holds no folder of a class: put the images of each class in one of its own"
        )
    for folder in folders:
        if any(folder.glob("plan.json")) or any(folder.glob("*/plan.json")):
            raise InputError(
                f"{folder} holds results of evostep, and is no class: move it, or give the folder "
                "that holds the classes alone"
            )
    files = {folder.name: _files(root, folder, noticed) for folder in folders}
    if empty := [name for name, found in files.items() if not found]:
        raise InputError(
            f"{part} is no image folder (no image in {', '.join(empty[:5])}): put the images of "
            "each class in a folder of its own, or remove the folder"
        )
    return files


def _warn_of_no_classes(root: Path, files: Files) -> None:
    """Warn where all images lie in folders of the folders: the wrong one may have been given."""
    if any(path.parent.parent == root for found in files.values() for path in found):
        return
    name, found = next(iter(files.items()))
    inner = next(iter(found)).parent.relative_to(root)
    warn(
        f"{root}: no class holds images itself, only folders that do, such as {inner}: all that "
        f"lies below {', '.join(files)} is taken for these classes; if the classes are the folders "
        f"within, give folder:{root / name}"
    )


def _common_size(root: Path, parts: Iterable[Files]) -> int:
    """Return the width and height that all images have; bad ones are told later."""
    paths = [path for files in parts for found in files.values() for path in found]
    sizes = sorted({size for path in paths if (size := size_of(path)) is not None})
    if len(sizes) == 1 and sizes[0][0] == sizes[0][1]:
        return sizes[0][0]
    ends = dict.fromkeys(f"{width}x{height}" for width, height in (sizes[:1] + sizes[-1:]))
    raise InputError(
        f"folder:{root} needs an image size, for its images have {' to '.join(ends) or 'no'} "
        "pixels: give --image-size PIXELS, such as 64, to which they are cropped and scaled"
    )


def _read(part: Path, files: Files, image_size: int, noticed: _Noticed) -> Part:
    """Return the images of a part, and their classes."""
    images = np.empty((sum(map(len, files.values())), 3, image_size, image_size), np.uint8)
    targets: list[int] = []
    for index, (name, paths) in enumerate(files.items()):
        before = len(targets)
        for path in paths:
            try:
                row = decode_rgb(path, str(path), image_size, films=noticed.films)
            except InputError as error:
                noticed.pass_over(error)
                continue
            images[len(targets)] = row
            targets.append(index)
        if len(targets) == before:
            raise InputError(f"{part / name} holds bad images alone: replace or remove them")
    return torch.from_numpy(images[: len(targets)]), torch.tensor(targets)


def _files(root: Path, folder: Path, noticed: _Noticed) -> list[Path]:
    """Return the images in a folder and below, links followed, in the order of torchvision."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found: list[Path] = []
    inside = root.resolve()

    def notice(path: Path) -> None:
        if path.is_symlink() and not (real := path.resolve()).is_relative_to(inside):
            noticed.outside.append(f"{path} -> {real}")

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}): make it readable, or remove it"
        ) from error

    notice(folder)
    walked: list[tuple[Path, list[str]]] = []
    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(place)
        for path in (here / name for name in below):
            if path.is_symlink() and here.resolve().is_relative_to(path.resolve()):
                raise InputError(f"{path} links to a folder that it lies in: remove the link")
            notice(path)
        walked.append((here, sorted(names)))
    for here, names in sorted(walked, key=lambda one: str(one[0])):
        for path in (here / name for name in names):
            if path.name.lower().endswith(IMG_EXTENSIONS):
                notice(path)
                found.append(path)
    return found
