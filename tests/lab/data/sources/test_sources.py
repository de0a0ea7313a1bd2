"""The table of sources: each name finds its reader, and load_data hands over what it takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.data import sources
from evostep.lab.data.images import load_data
from evostep.lab.data.sources import SOURCES, Reader, find_reader
from evostep.lab.data.sources.base import Source


@pytest.mark.parametrize("name", SOURCES)
def test_a_reader_takes_what_the_table_says(name: str) -> None:
    reader = SOURCES[name]
    assert tuple(inspect.signature(reader.load).parameters) == reader.takes
    assert reader.summary


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("digits", "digits"),
        ("text-lines:3", "text-lines:SERIES"),
        ("folder:/some/where", "folder:PATH"),
        ("folder:C:/x", "folder:PATH"),
        ("mine.data:train", "package.module:attribute"),
    ],
)
def test_a_name_finds_its_reader(name: str, row: str) -> None:
    assert find_reader(name) is SOURCES[row]


def test_a_new_source_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[Any] = []

    def load(folder: Path | None) -> Source:
        told.append(folder)
        images = torch.zeros(4, 1, 5, 5, dtype=torch.uint8)
        return Source("Blank", (images, torch.tensor([0, 1, 0, 1])), None, ["a", "b"])

    monkeypatch.setitem(sources.SOURCES, "blank", Reader(load, "nothing", takes=("folder",)))
    assert load_data("blank", tmp_path).title == "Blank"
    assert told == [tmp_path]
    with pytest.raises(InputError, match="image size 6 does not fit blank, whose images are 5"):
        load_data("blank", tmp_path, image_size=6)
    with pytest.raises(InputError, match=r"did you mean blank\?.*package.module:attribute, blank"):
        load_data("blanc")
