"""CIFAR-10: parquet files that are decoded once, and those that are refused."""

from __future__ import annotations

import io
import os
import struct
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image

from evostep.lab.data.images import load_data
from evostep.lab.data.sources import cache as caching
from evostep.lab.data.sources import cifar10

Refused = Callable[..., None]
JPEG_CIFAR = Path(os.environ.get("EVOSTEP_DATA", "nowhere")) / "cifar10"
WITHIN = "a/b/src/evostep/lab/data/sources/cifar10.py"  # a module of another project


def encoded(pixels: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def table(images: list[bytes | None], labels: list[Any]) -> pa.Table:
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": image, "path": None} for image in images]
    return pa.table({"img": pa.array(rows, struct_type), "label": pa.array(labels)})


def pixels(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A folder in the Hugging Face layout with 30 training and 10 test images, losslessly."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for seed, (part, n) in enumerate((("train", 30), ("test", 10))):
        images: list[bytes | None] = [encoded(image) for image in pixels(n, seed)]
        rows = table(images, [i % 10 for i in range(n)])
        pq.write_table(rows, folder / f"{part}.parquet", row_group_size=7)
    return folder


def test_cifar10_is_decoded_once(cifar: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("cifar10", cifar)
    assert data.title == "CIFAR-10"
    assert torch.equal(data.inputs, torch.from_numpy(pixels(30, 0)).permute(0, 3, 1, 2))
    assert data.test_inputs is not None
    assert torch.equal(data.test_inputs, torch.from_numpy(pixels(10, 1)).permute(0, 3, 1, 2))
    assert data.targets.tolist() == [*range(10)] * 3
    assert data.classes[:2] == ("airplane", "automobile")
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]  # no temporary file

    decode = cifar10._decode_parquet
    decoded: list[Path] = []
    monkeypatch.setattr(
        cifar10, "_decode_parquet", lambda path: (decoded.append(path), decode(path))[1]
    )
    again = load_data("cifar10", cifar)
    assert decoded == []
    assert torch.equal(again.inputs, data.inputs)
    assert (again.title, again.mean, again.std) == (data.title, data.mean, data.std)

    os.utime(cifar / "test.parquet", ns=(1, 1))  # another time is another file
    load_data("cifar10", cifar)
    assert len(decoded) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "other"])
def test_a_damaged_cache_is_rebuilt(cifar: Path, cache: Path, damage: str) -> None:
    data = load_data("cifar10", cifar)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5000] ^= 1  # within the images: only a checksum can tell
    other = struct.pack("<Q", 2) + b"{}"  # a valid file without tensors
    path.write_bytes(
        {"cut": whole[:-9], "flip": flipped, "empty": b"", "text": b"hello", "other": other}[damage]
    )
    again = load_data("cifar10", cifar)
    assert torch.equal(again.inputs, data.inputs)
    assert torch.equal(again.targets, data.targets)
    assert list(cache.iterdir()) == [path]
    assert caching.read_cache(path) is not None


def test_a_cache_that_cannot_be_written_costs_only_time(cifar: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot write the cache.*set EVOSTEP_CACHE"):
        assert len(load_data("cifar10", cifar).inputs) == 30


def test_jpeg_images_are_told_in_the_title(cifar: Path) -> None:
    images: list[bytes | None] = [encoded(image, "JPEG") for image in pixels(10, 1)]
    pq.write_table(table(images, [0] * 10), cifar / "test.parquet")
    for _ in ("decoded", "cached"):
        assert load_data("cifar10", cifar).title == "JPEG-recompressed CIFAR-10"


def test_cifar10_is_found_by_the_environment(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSTEP_DATA", str(cifar.parent))
    assert len(load_data("cifar10").inputs) == 30


def test_where_nothing_is_found_the_places_are_told(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(**_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    monkeypatch.setattr(cifar10, "__file__", str(tmp_path / WITHIN))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("EVOSTEP_DATA", str(tmp_path / "mine"))
    told = "give --data-dir FOLDER with train.parquet and test.parquet"
    refused(f"mine/cifar10.*download failed .*no route to host.*{told}", "cifar10")
    refused(f"in {tmp_path}/nothing: .*--data-dir", "cifar10", tmp_path / "nothing")


PNG = encoded(pixels(1, 0)[0])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (table([PNG, PNG[:500]], [0, 1]), r"image 1 of .*train.parquet does not decode"),
        (table([PNG, b"junk"], [0, 1]), r"image 1 of .*does not decode .UnidentifiedImageError\)"),
        (table([PNG, None], [0, 1]), r"image 1 of .*does not decode"),
        (table([encoded(pixels(1, 0)[0, :16])], [0]), r"image 0 of .* is 32x16, not 32x32"),
        (table([PNG, PNG], [0, 10]), r"train.parquet has a label outside 0 to 9"),
        (table([PNG, PNG], [0, None]), r"label outside 0 to 9"),
        (table([PNG], ["cat"]), r"has the columns .*label: string.*it needs img"),
        (pa.table({"image": [PNG], "label": [0]}), r"has the columns .image: binary"),
        (pa.table({"img": [PNG], "label": [0]}), r"img: binary.* a struct with bytes"),
        (table([PNG], [0]).drop_columns(["label"]), r"it needs img, .*, and label"),
        (table([PNG], [0]).slice(0, 0), r"train.parquet has no rows"),
    ],
)
def test_malformed_parquet_is_refused(
    refused: Refused, cifar: Path, cache: Path, rows: pa.Table, told: str
) -> None:
    pq.write_table(rows, cifar / "train.parquet")
    refused(told, "cifar10", cifar)
    assert not cache.exists()


def test_missing_and_truncated_parquet_is_refused(refused: Refused, cifar: Path) -> None:
    path = cifar / "train.parquet"
    raw = path.read_bytes()
    path.write_bytes(raw[:-100])
    refused("cannot read .*train.parquet .*: get the file again", "cifar10", cifar)
    broken = bytearray(raw)
    broken[4:3000] = bytes(2996)  # pages destroyed, footer whole
    path.write_bytes(broken)
    refused("train.parquet", "cifar10", cifar)
    path.unlink()
    refused("missing file .*train.parquet", "cifar10", cifar)


def test_damaged_torchvision_batches_are_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    refused("cannot read .*cifar-10-batches-py .*: get it again", "cifar10", tmp_path)


@pytest.mark.slow
def test_real_cifar10() -> None:
    if not JPEG_CIFAR.is_dir():
        pytest.skip(f"the real CIFAR-10 is not in {JPEG_CIFAR}")
    start = time.monotonic()
    data = load_data("cifar10", JPEG_CIFAR)
    assert time.monotonic() - start < 60
    assert data.title == "JPEG-recompressed CIFAR-10"
    assert data.targets.bincount().tolist() == [5000] * 10
    assert data.test_targets is not None
    assert data.test_targets.bincount().tolist() == [1000] * 10
    assert data.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)  # of the originals
    start = time.monotonic()
    assert torch.equal(load_data("cifar10", JPEG_CIFAR).inputs, data.inputs)
    assert time.monotonic() - start < 5
