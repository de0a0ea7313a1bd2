"""Images of the lab: what is loaded, what is cached, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import struct
import sys
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

from evostep.errors import InputError
from evostep.lab import data as module
from evostep.lab.data import augment, channel_statistics, load_data

JPEG_CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVOSTEP_DATA", raising=False)
    return tmp_path / "cache"


def refused(told: str, name: str, *args: Any, **options: Any) -> None:
    """Loading fails in one line that matches."""
    with pytest.raises(InputError, match=told) as caught:
        load_data(name, *args, **options)
    assert "\n" not in str(caught.value)


# What every kind of data has in common


def test_digits_are_scikit_learns_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    digits, bunch = load_data("digits"), load_digits()
    assert digits.inputs.dtype == torch.uint8
    assert (digits.inputs.min(), digits.inputs.max()) == (0, 255)
    back = digits.inputs.squeeze(1).double() * 16 / 255
    assert np.abs(back.numpy() - bunch.images).max() < 0.05
    assert digits.targets.tolist() == bunch.target.tolist()
    assert digits.classes == tuple("0123456789")
    assert digits.test_inputs is None
    assert digits.test_targets is None


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    digits = load_data("digits")
    inputs = digits.inputs.clone()
    normal = digits.normalise(inputs)
    assert normal.dtype == torch.float32
    assert normal.mean().abs() < 1e-5
    assert abs(normal.std(correction=0).item() - 1) < 1e-5
    assert torch.equal(inputs, digits.inputs)
    with pytest.raises(InputError, match=r"cannot normalise torch.float32 .* uint8 originals"):
        digits.normalise(normal)


def test_channel_statistics_agree_with_numpy_and_survive_a_constant_channel() -> None:
    images = torch.randint(0, 256, (5000, 3, 4, 5), dtype=torch.uint8)
    images[:, 1] = 51
    mean, std = channel_statistics(images)
    plain = images.numpy() / 255.0
    np.testing.assert_allclose(mean, plain.mean((0, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(std[::2], plain.std((0, 2, 3))[::2], rtol=1e-10)
    assert std[1] == 1.0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digit", "unknown data 'digit': did you mean digits.*cifar10.*folder:PATH"),
        ("fashion_mnist", "did you mean fashion-mnist"),
        ("", "unknown data ''"),
        ("no_such_module:data", "cannot import 'no_such_module'"),
    ],
)
def test_unknown_names_are_refused(name: str, told: str) -> None:
    refused(told, name)


def test_image_size_fits_or_is_refused() -> None:
    assert load_data("digits", image_size=8).inputs.shape[-1] == 8
    refused("image size 32 does not fit digits, whose images are 8 pixels", "digits", image_size=32)
    refused("image size 0 is not positive", "digits", image_size=0)


def test_a_folder_without_effect_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has no effect on 'digits'"):
        load_data("digits", tmp_path)


# Fashion-MNIST


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
    fashion: Path, damage: Callable[[Path], None], told: str
) -> None:
    damage(fashion)
    refused(told, "fashion-mnist", fashion)


@pytest.mark.parametrize(
    ("name", "dataset", "told"),
    [
        ("fashion-mnist", "FashionMNIST", r"dataset-fashion-mnist, or give --data-dir"),
        ("cifar10", "CIFAR10", r"give --data-dir FOLDER with train.parquet and test.parquet"),
    ],
)
def test_where_nothing_is_found_the_places_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dataset: str, told: str
) -> None:
    def offline(**_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, dataset, offline)
    monkeypatch.setattr(module, "DEBIAN_FASHION", tmp_path / "debian")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "a/b/src/evostep/lab/data.py"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("EVOSTEP_DATA", str(tmp_path / "mine"))
    refused(rf"mine/{name}.*download failed .*no route to host.*{told}", name)
    refused(rf"in {tmp_path}/nothing: .*--data-dir", name, tmp_path / "nothing")


@pytest.mark.slow
def test_real_fashion_mnist() -> None:
    if not module.DEBIAN_FASHION.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    data = load_data("fashion-mnist")
    assert data.inputs.shape == (60_000, 1, 28, 28)
    assert data.targets.bincount().tolist() == [6000] * 10
    assert data.mean == pytest.approx([0.2860], abs=1e-4)  # the published numbers
    assert data.std == pytest.approx([0.3530], abs=1e-4)


# CIFAR-10


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

    decode = module._decode_parquet
    decoded: list[Path] = []
    monkeypatch.setattr(
        module, "_decode_parquet", lambda path: (decoded.append(path), decode(path))[1]
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
    assert module._read_cache(path) is not None


def test_a_cache_that_cannot_be_written_costs_only_time(cifar: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot write the cache.*set EVOSTEP_CACHE"):
        assert len(load_data("cifar10", cifar).inputs) == 30


def test_jpeg_images_are_told_in_the_title(cifar: Path) -> None:
    images: list[bytes | None] = [encoded(image, "JPEG") for image in pixels(10, 1)]
    pq.write_table(table(images, [0] * 10), cifar / "test.parquet")
    for _ in ("decoded", "cached"):
        assert load_data("cifar10", cifar).title == "JPEG-recompressed CIFAR-10"


def test_cifar10_is_found_by_the_environment_and_beside_the_project(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "a/b/src/evostep/lab/data.py"))
    monkeypatch.setenv("EVOSTEP_DATA", str(cifar.parent))
    assert len(load_data("cifar10").inputs) == 30
    monkeypatch.delenv("EVOSTEP_DATA")
    (tmp_path / "shared" / "data").mkdir(parents=True)
    cifar.rename(tmp_path / "shared" / "data" / "cifar10")
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    assert len(load_data("cifar10").inputs) == 30


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
def test_malformed_parquet_is_refused(cifar: Path, cache: Path, rows: pa.Table, told: str) -> None:
    pq.write_table(rows, cifar / "train.parquet")
    refused(told, "cifar10", cifar)
    assert not cache.exists()


def test_missing_and_truncated_parquet_is_refused(cifar: Path) -> None:
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


def test_damaged_torchvision_batches_are_refused(tmp_path: Path) -> None:
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


# Image folders


def draw(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for part, n in (("train", 3), ("test", 2)):
        for i in range(n):
            draw(tmp_path / "pets" / part / "cat" / f"{i}.png", (200, i, 0))
            draw(tmp_path / "pets" / part / "dog" / f"{i}.png", (0, i, 100), (8, 30))
    return tmp_path / "pets"


def test_image_folder(pictures: Path) -> None:
    data = load_data(f"folder:{pictures}", image_size=8)
    assert data.classes == ("cat", "dog")
    assert data.title == "pets"
    assert data.inputs.shape == (6, 3, 8, 8)
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_targets is not None
    assert data.test_targets.tolist() == [0, 0, 1, 1]
    expected = torch.tensor([200, 1, 0]).view(3, 1, 1).expand(3, 8, 8)
    assert torch.equal(data.inputs[1], expected.to(torch.uint8))

    (pictures / "test").rename(pictures / "val")
    again = load_data(f"folder:{pictures}", image_size=8)
    assert again.test_inputs is not None
    assert torch.equal(again.inputs, data.inputs)

    alone = load_data(f"folder:{pictures / 'train'}", image_size=8)
    assert torch.equal(alone.inputs, data.inputs)
    assert alone.test_inputs is None


def test_images_are_cropped_to_a_square_not_squeezed(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), (255, 0, 0))
    image.paste((0, 255, 0), (10, 0, 20, 10))  # the middle square is green
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "x.png")
    inputs = load_data(f"folder:{tmp_path}", image_size=10).inputs
    assert inputs[0, :, :, :].flatten(1).unique(dim=1).flatten().tolist() == [0, 255, 0]


def test_bad_image_folders_are_refused(pictures: Path, tmp_path: Path) -> None:
    name = f"folder:{pictures}"
    refused("needs an image size: give --image-size", name)
    refused("no folder .*nowhere", f"folder:{tmp_path / 'nowhere'}", image_size=8)
    (tmp_path / "bare").mkdir()
    refused("is no image folder", f"folder:{tmp_path / 'bare'}", image_size=8)

    broken = pictures / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    refused(r"dog/1.png does not decode .*: replace or remove it", name, image_size=8)
    Image.new("I;16", (8, 8), 4000).save(broken)
    refused(r"dog/1.png has Pillow's mode 'I;16': convert it to 8 bits", name, image_size=8)
    broken.unlink()

    draw(pictures / "test" / "emu" / "0.png", (1, 2, 3))
    refused("train and test differ in the classes emu", name, image_size=8)
    (pictures / "train").rename(tmp_path / "elsewhere")
    refused("has test but no train folder: add it", name, image_size=8)


# Any Dataset by import path


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
def test_bad_datasets_are_refused(own: str, attribute: str, told: str) -> None:
    refused(told, f"{own}:{attribute}")
    del sys.modules[own]


def test_tensors_are_not_resized_silently(own: str) -> None:
    refused("image size 9 cannot change: resize in the Dataset", f"{own}:plain", image_size=9)
    del sys.modules[own]


# Augmentation


def twin(images: torch.Tensor, generator: torch.Generator, kind: str) -> torch.Tensor:
    """The slow and obvious way: one image at a time."""
    n, _, height, width = images.shape
    reach = height // 8
    down = torch.randint(2 * reach + 1, (n, 1), generator=generator)
    right = torch.randint(2 * reach + 1, (n, 1), generator=generator)
    flip = torch.zeros(n)
    if kind == "flip-shift":
        flip = torch.randint(2, (n, 1), generator=generator)
    made = []
    for i, image in enumerate(images):
        padded = torch.nn.functional.pad(image, (reach,) * 4)
        top, left = int(down[i]), int(right[i])
        crop = padded[:, top : top + height, left : left + width]
        made.append(crop.flip(2) if flip[i] else crop)
    return torch.stack(made)


@pytest.mark.parametrize("kind", ["shift", "flip-shift"])
@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (40, 1, 8, 8), (40, 2, 16, 24), (5, 1, 4, 4)])
def test_augment_agrees_with_its_slow_twin(kind: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    kept = images.clone()
    before = torch.get_rng_state()
    made = augment(images, torch.Generator().manual_seed(3), kind=kind)
    assert torch.equal(made, twin(images, torch.Generator().manual_seed(3), kind))
    assert torch.equal(images, kept)
    assert torch.equal(before, torch.get_rng_state())
    another = augment(images, torch.Generator().manual_seed(4), kind=kind)
    if shape[2] >= 8 or kind == "flip-shift":
        assert not torch.equal(made, another)


def test_shifts_and_flips_are_uniform() -> None:
    images = torch.zeros(9000, 1, 8, 8)
    images[:, :, 3, 2] = 1
    made = augment(images, torch.Generator().manual_seed(0), kind="flip-shift")
    places = made.sum((0, 1))
    assert made.sum() == 9000
    # Three rows by two times three columns, each binomial: 9000 draws at 1/18, deviation 21.7.
    assert (places[2:5, [1, 2, 3, 4, 5, 6]] - 500).abs().max() < 5 * 21.7


def test_augment_none_draws_nothing_and_unknown_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    before, images = generator.get_state(), torch.rand(2, 1, 8, 8)
    assert augment(images, generator, kind="none") is images
    assert torch.equal(before, generator.get_state())
    with pytest.raises(InputError, match="unknown augmentation 'flip': did you mean flip-shift"):
        augment(images, generator, kind="flip")
