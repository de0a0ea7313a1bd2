"""Datasets by import path: those that are read, and those that are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evostep.lab.data.images import load_data

Refused = Callable[..., None]


OWN = """
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

def tensors(n, images=None, labels=None):
    images = torch.full((n, 1, 6, 6), 0.5) if images is None else images
    return TensorDataset(images, torch.arange(n) % 3 if labels is None else labels)

class Grey(Dataset):
    classes = ["black", "white"]
    def __len__(self):
        return 4
    def __getitem__(self, i):
        if i >= 4:
            raise IndexError(i)
        return Image.new("L", (10 + i, 12), 255 * (i % 2)), i % 2

class Odd(Grey):
    def __init__(self, item=None):
        self.item = item
    def __getitem__(self, i):
        if isinstance(self.item, Exception):
            raise self.item
        return self.item

plain = tensors(6)
def pair():
    return tensors(6), tensors(3)
levels = torch.tensor([0, 1, 128, 255], dtype=torch.uint8)
coded = tensors(4, levels.view(4, 1, 1, 1).repeat(1, 3, 5, 5))
normalised = tensors(2, torch.full((2, 1, 6, 6), -0.4))
nan = tensors(2, torch.full((2, 1, 6, 6), float("nan")))
integers = tensors(2, torch.full((2, 1, 6, 6), 200))
last = tensors(2, torch.rand(2, 6, 6, 3))
empty = tensors(0)
negative = tensors(2, labels=torch.tensor([0, -1]))
fractions = tensors(2, labels=torch.tensor([0.0, 1.5]))
raises = Odd(RuntimeError("disk\\non fire"))
single = Odd(torch.rand(1, 6, 6))
array = Odd(([[1, 2]], 0))
deep = Odd((Image.new("I;16", (6, 6)), 0))
high = Odd((torch.rand(1, 6, 6), 2))
shapes = plain, tensors(3, torch.rand(3, 1, 7, 7))
three = plain, plain, plain
number = 3
def fails():
    raise KeyError("path")
def needs(argument):
    return plain
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module with datasets into the current directory; returns its name."""
    name = "own_datasets"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_datasets_by_import_path(own: str) -> None:
    plain = load_data(f"{own}:plain")
    assert plain.inputs.shape == (6, 1, 6, 6)
    assert plain.inputs.unique().tolist() == [128]
    assert plain.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert plain.classes == ("0", "1", "2")
    assert plain.test_inputs is None

    pair = load_data(f"{own}:pair")
    assert pair.test_targets is not None
    assert pair.test_targets.tolist() == [0, 1, 2]

    coded = load_data(f"{own}:coded")
    assert coded.inputs[:, 2, 4, 4].tolist() == [0, 1, 128, 255]

    grey = load_data(f"{own}:Grey", image_size=7)  # a class is a function without arguments
    assert grey.inputs.shape == (4, 1, 7, 7)
    assert grey.inputs[:, 0, 0, 0].tolist() == [0, 255, 0, 255]
    assert grey.classes == ("black", "white")
    del sys.modules[own]


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        ("normalised", r"normalised\[0\] has torch.float32 values from -0.4 .* floats in \[0, 1\]"),
        ("nan", r"values from nan to nan: return uint8"),
        ("integers", r"torch.int64 values from 200 to 200: return uint8"),
        ("last", r"has the shape \(6, 6, 3\): return channels first"),
        ("empty", r"is empty: give a Dataset with examples"),
        ("negative", r"negative\[1\] has the label tensor\(-1\): return a whole number"),
        ("fractions", r"fractions\[0\] has the label tensor\(0.\)"),
        ("raises", r"raises\[0\] failed \(RuntimeError: disk on fire\)"),
        ("single", r"single\[0\] is no pair: return \(image, label\)"),
        ("array", r"array\[0\] has an image of type list"),
        ("deep", r"deep\[0\] has Pillow's mode 'I;16'"),
        ("high", r"has the label 2 but 2 classes: number them from 0"),
        ("shapes", r"train and test images differ, \(1, 6, 6\) and \(1, 7, 7\)"),
        ("Grey", r"Grey\[1\] has the shape \(1, 12, 11\), .*\[0\] \(1, 12, 10\): .*--image-size"),
        ("three", r"gives TensorDataset and TensorDataset and TensorDataset: it must be"),
        ("number", r"gives int: it must be a Dataset"),
        ("fails", r"fails\(\) failed \(KeyError: 'path'\)"),
        ("needs", r"needs\(\) failed \(TypeError"),
        ("plane", r"unknown attribute of own_datasets 'plane': did you mean plain"),
    ],
)
def test_bad_datasets_are_refused(refused: Refused, own: str, attribute: str, told: str) -> None:
    refused(told, f"{own}:{attribute}")
    del sys.modules[own]


def test_tensors_are_not_resized_silently(refused: Refused, own: str) -> None:
    refused("image size 9 cannot change: resize in the Dataset", f"{own}:plain", image_size=9)
    del sys.modules[own]
