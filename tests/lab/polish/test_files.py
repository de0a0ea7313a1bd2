"""Tables of costs and frequencies, in the forms that people have them in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evostep.errors import InputError
from evostep.lab.polish.files import fingerprint, read_columns, read_costs, read_prior

CLASSES = ("cat", "dog")
COSTS = [[0.0, 1.0], [5.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", "0,1\n5,0\n"),
        ("c.csv", "0 1\n5 0"),
        ("c.csv", "cat,dog\n0,1\n5,0"),
        ("c.csv", ",cat,dog\ncat,0,1\ndog,5,0"),
        ("c.csv", ",dog,cat\ncat,1,0\ndog,0,5"),  # columns in another order
        ("c.csv", ",cat,dog\ndog,5,0\ncat,0,1"),  # rows in another order
        ("c.csv", "cat,0,1\ndog,5,0"),
        ("c.tsv", "0\t1\n5\t0"),
        ("c.json", json.dumps(COSTS)),
    ],
)
def test_costs_are_read_in_the_order_of_the_classes(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_costs(tmp_path / name, CLASSES).tolist() == COSTS


def test_costs_of_numpy(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.array(COSTS))
    assert read_costs(tmp_path / "c.npy", CLASSES).tolist() == COSTS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0,1,2\n5,0,1\n1,1,0\n4,4,4", "table of 4 x 3 for 2 classes"),
        ("0,1\n5", "2 x 1/2"),
        ("0,much\n5,0", "'much'"),
        ("cat,owl\n0,1\n5,0", "names the classes cat, owl"),
        ("", "is empty"),
    ],
)
def test_other_tables_are_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(InputError, match=told):
        read_costs(tmp_path / "c.csv", CLASSES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "0.9,0.1"),
        ("p.txt", "0.9\n0.1\n"),
        ("p.csv", "dog,0.1\ncat,0.9"),
        ("p.csv", "class,n\ncat,0.9\ndog,0.1"),
        ("p.json", "[0.9, 0.1]"),
        ("p.json", '{"dog": 0.1, "cat": 0.9}'),
    ],
)
def test_frequencies_are_a_list_or_a_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_prior(str(tmp_path / name), CLASSES) == [0.9, 0.1]
    assert read_prior(" 0.9, 0.1", CLASSES) == [0.9, 0.1]


def test_frequencies_of_classes_that_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("1,30\n0,90\n")
    assert read_prior(str(tmp_path / "p.csv"), ("0", "1")) == [90.0, 30.0]


def test_tables_that_are_none(tmp_path: Path) -> None:
    for name, told in (
        ("s.xlsx", "none of .csv"),
        ("s.parquet", "cannot be read"),
        ("s.npz", "read"),
    ):
        (tmp_path / name).write_bytes(b"no table")
        with pytest.raises(InputError, match=told) as caught:
            read_columns(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="correct the path"):
        fingerprint(tmp_path / "missing.csv")
    np.savez(tmp_path / "uneven.npz", score_a=np.zeros(3), label=np.zeros(4))
    with pytest.raises(InputError, match=r"arrays of \[3, 4\] examples"):
        read_columns(tmp_path / "uneven.npz")


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00\x08\x00{'a': [(", b"", b"\x80\x04K\x01."])
def test_a_broken_npy_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.npy cannot be read"):
        read_costs(tmp_path / "c.npy", CLASSES)
