"""Runs as a spreadsheet: numbers are numbers, and no text is run."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from evostep.lab.report.spreadsheet import runs_csv

SIGNS = ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\t=", "\uff1d", "\uff0b", "\uff0d", "\uff20"]


def rows(*runs: dict[str, Any], delimiter: str = ",") -> list[list[str]]:
    text = runs_csv({"runs": list(runs)})
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


@pytest.mark.parametrize("sign", SIGNS)
def test_a_text_from_data_is_no_formula(sign: str) -> None:
    text = f"{sign}HYPERLINK(1)"
    run = {"arm": text, "seed": 0, "test": {text: -0.5}, "diverged": text, "seconds": 1}
    head, line = rows(run)
    assert line == [f"'{text}", "0", "-0.5", "1", f"'{text}"]
    assert head == ["arm", "seed", f"test {text}", "seconds", "diverged"]


@pytest.mark.parametrize("text", ["a,=1", "a;=1", "a\t=1", "a\n=1", 'a",=1', 'a";=1', '",=1'])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_no_field_begins_within_a_text(text: str, delimiter: str) -> None:
    _, line = rows({"arm": text, "seed": 3, "seconds": 1.5}, delimiter=delimiter)
    assert line[0] == text if delimiter == "," else line[0].startswith(text)
    if delimiter == ",":
        assert line == [text, "3", "1.5"]


@pytest.mark.parametrize("number", [-1, -0.25, 1e-300, -1e300, 0, True])
def test_numbers_are_numbers(number: float) -> None:
    _, line = rows({"arm": "sgd", "seed": 0, "test": {"loss": number}, "seconds": number})
    assert line == ["sgd", "0", str(number), str(number)]


def test_what_a_run_lacks_is_empty() -> None:
    one = {"arm": "a", "seed": 0, "test": {"accuracy": None}, "seconds": 1}
    other = {"arm": "b", "seed": 1, "test": {"loss": 0.5}}
    assert rows(one, other) == [
        ["arm", "seed", "test accuracy", "test loss", "seconds"],
        ["a", "0", "", "", "1"],
        ["b", "1", "", "0.5", ""],
    ]
    assert runs_csv({"runs": []}) == "arm,seed\n"
