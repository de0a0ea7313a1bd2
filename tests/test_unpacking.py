"""Small files that unpack to very much are refused beforehand, by name, and memory stays."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evostep import unpacking
from evostep.errors import InputError
from evostep.lab.checkpoints import CorruptError, load_checkpoint, save_checkpoint
from evostep.lab.data.sources import cifar10, fashion_mnist
from evostep.lab.polish.files import read_columns
from evostep.spaces import span

SIZE = 2**27  # of what a bomb unpacks to: as much as this process must not grow by


def idx(path: Path, claimed: int, held: int) -> None:
    """Write a gzipped IDX file of images that says one number of bytes and holds another."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, claimed // 784, 28, 28))
        for _ in range(held // 2**20):
            file.write(bytes(2**20))


def npz(path: Path) -> None:
    header = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": (SIZE // 16, 2)}
    np.lib.format.write_array_header_1_0(header, about)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("scores.npy", "w") as file,
    ):
        file.write(header.getvalue())
        for _ in range(SIZE // 2**20):
            file.write(bytes(2**20))


def table(path: Path, *, texts: bool = False) -> None:
    """Write a parquet file whose rows are all the same, and so take next to nothing."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if texts:
        values = pa.DictionaryArray.from_arrays(np.zeros(4096, np.int32), ["x" * (SIZE // 4096)])
    else:
        values = pa.array(np.zeros(SIZE // 8))
    parquet.write_table(pa.table({"score_a": values}), path)


def checkpoint(path: Path) -> None:
    save_checkpoint(path, {"w": torch.zeros(SIZE // 4)})
    with zipfile.ZipFile(path) as whole:
        entries = [(entry.filename, whole.read(entry)) for entry in whole.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name, content in entries:
            packed.writestr(name, content)


BOMBS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "images.gz": (lambda p: idx(p, SIZE, SIZE), lambda p: fashion_mnist._read_idx(p, 3)),
    "scores.npz": (npz, read_columns),
    "rows.parquet": (table, read_columns),
    "texts.parquet": (lambda p: table(p, texts=True), read_columns),
    "last.pt": (checkpoint, lambda p: load_checkpoint(p, torch.device("cpu"))),
    "other.pt": (checkpoint, span._load),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "FREE", 2**20)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unpacks_to_very_much_is_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    write, read = BOMBS[name]
    write(path)
    assert path.stat().st_size < SIZE / 100
    with pytest.raises(InputError, match=r"would unpack from .* MB to \d+ MB or more") as told:
        read(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.usefixtures("small")
def test_what_is_longer_than_it_says_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    idx(path, 784 * 100, SIZE)
    with pytest.raises(InputError, match="has more bytes, not 78416 as it says"):
        fashion_mnist._read_idx(path, 3)


@pytest.mark.usefixtures("small")
def test_a_file_that_is_large_itself_may_be_large(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez_compressed(path, scores=np.random.default_rng(0).normal(size=(2**17, 2)))
    assert len(read_columns(path)["score_0"]) == 2**17
    np.savez(path, scores=np.zeros((2**18, 2)))  # as the error advises
    assert len(read_columns(path)["score_0"]) == 2**18


def test_pictures_that_are_the_same_again_and_again_are_refused(
    tmp_path: Path, small: None
) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "train.parquet"
    same = pa.DictionaryArray.from_arrays(np.zeros(2**13, np.int32), [bytes(2**14)])
    image = pa.StructArray.from_arrays([same.cast(pa.binary())], ["bytes"])
    parquet.write_table(pa.table({"img": image, "label": pa.array(np.zeros(2**13, int))}), path)
    with pytest.raises(InputError, match=r"train\.parquet would unpack .*: get the file again"):
        cifar10._decode_parquet(path)


def test_a_checkpoint_that_would_fill_memory_gives_way_to_the_one_before(
    tmp_path: Path, small: None
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"w": torch.ones(3)})
    checkpoint(path)
    with pytest.warns(UserWarning, match="would unpack"):
        assert load_checkpoint(path, torch.device("cpu"))["w"].tolist() == [1, 1, 1]
    checkpoint(path)
    (tmp_path / "last.before.pt").unlink(missing_ok=True)
    with pytest.raises(CorruptError, match="would unpack"):
        load_checkpoint(path, torch.device("cpu"))


_MEASURED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_unpacking as own
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
own.unpacking.FREE = 2**20
tiny = Path({folder!r}) / "tiny.parquet"
import pyarrow as pa, pyarrow.parquet as parquet
parquet.write_table(pa.table({{"score_a": [1.0, 2.0]}}), tiny)
own.read_columns(tiny)
for name, (_, read) in own.BOMBS.items():
    before = peak()
    try:
        read(Path({folder!r}) / name)
    except own.InputError:
        print(name, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures what Linux counts")
def test_memory_stays_where_a_file_is_refused(tmp_path: Path) -> None:
    for name, (write, _) in BOMBS.items():
        write(tmp_path / name)
    code = _MEASURED.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown = {name: int(size) for name, size in map(str.split, told.stdout.splitlines())}
    assert grown.keys() == BOMBS.keys()
    assert max(grown.values()) < SIZE / 2, grown
