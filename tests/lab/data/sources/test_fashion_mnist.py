"""Fashion-MNIST: IDX files that are read, and those that are refused."""

from __future__ import annotations

import gzip
import struct
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from evostep.lab.data.images import load_data
from evostep.lab.data.sources import fashion_mnist

Refused = Callable[..., None]


def idx(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Small files of the right form: 20 training and 10 test images, one of them not gzipped."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stem, n in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        labels = np.arange(n, dtype=np.uint8) % 10
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_fashion_mnist_is_read_from_idx_files(
    fashion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data("fashion-mnist", fashion)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert torch.equal(data.inputs, torch.from_numpy(images).unsqueeze(1))
    assert data.targets.tolist() == [*range(10), *range(10)]
    assert data.test_inputs is not None
    assert data.test_targets is not None
    assert data.test_inputs.shape == (10, 1, 28, 28)
    assert data.test_targets.tolist() == list(range(10))
    assert data.classes[9] == "Ankle boot"

    monkeypatch.setenv("EVOSTEP_DATA", str(fashion.parent))
    assert torch.equal(load_data("fashion-mnist").inputs, data.inputs)

    raw = fashion.parent / "other" / "FashionMNIST" / "raw"  # torchvision's layout
    raw.parent.mkdir(parents=True)
    fashion.rename(raw)
    assert torch.equal(load_data("fashion-mnist", raw.parents[1]).inputs, data.inputs)


def cut_gzip(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-2000])


def flip_gzip(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


def no_gzip(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")


def swap(folder: Path) -> None:
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros((20, 28, 28), np.uint8)))


def cut_labels(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def cut_header(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:6])


def empty(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")


def fewer_labels(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, np.uint8)))


def label_10(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.full(20, 10, np.uint8)))


def remove(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte.gz").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut_gzip, r"cannot read .*train-images-idx3-ubyte.gz .EOFError.*get the file again"),
        (flip_gzip, r"cannot read .*train-images-idx3-ubyte.gz"),
        (no_gzip, r"cannot read .*BadGzipFile"),
        (swap, r"train-labels-idx1-ubyte begins with 00000803 .* has 00000801"),
        (cut_labels, r"t10k-labels-idx1-ubyte has 17 bytes, not 18"),
        (cut_header, r"t10k-labels-idx1-ubyte ends within its header"),
        (empty, r"t10k-labels-idx1-ubyte begins with nothing"),
        (fewer_labels, r"images \(20, 28, 28\) and 19 labels"),
        (label_10, r"20 labels up to 10"),
        (remove, r"missing file .*t10k-images-idx3-ubyte.gz"),
    ],
)
def test_damaged_fashion_mnist_is_refused(
    refused: Refused, fashion: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(fashion)
    refused(told, "fashion-mnist", fashion)


def test_where_nothing_is_found_the_places_are_told(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(**_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("EVOSTEP_DATA", str(tmp_path / "mine"))
    told = "download failed .*no route to host.*dataset-fashion-mnist, or give --data-dir"
    refused(f"mine/fashion-mnist, {tmp_path}/debian: .*{told}", "fashion-mnist")
    refused(f"in {tmp_path}/nothing: .*--data-dir", "fashion-mnist", tmp_path / "nothing")


@pytest.mark.slow
def test_real_fashion_mnist() -> None:
    if not fashion_mnist.DEBIAN.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    data = load_data("fashion-mnist")
    assert data.inputs.shape == (60_000, 1, 28, 28)
    assert data.targets.bincount().tolist() == [6000] * 10
    assert data.mean == pytest.approx([0.2860], abs=1e-4)  # the published numbers
    assert data.std == pytest.approx([0.3530], abs=1e-4)
