"""Files of a run: whole or absent, and a corrupt one is told in a line that says what to do."""

import json
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from evostep.errors import DiskError, InputError
from evostep.lab import checkpoints
from evostep.lab.checkpoints import load_checkpoint, save_checkpoint
from evostep.lab.storage import (
    History,
    read_json,
    write_bytes,
    write_json,
)
from evostep.lab.weights import save_weights

CPU = torch.device("cpu")


class FullError(OSError):
    """The disk is full."""


def test_json_comes_back_and_its_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.json"
    write_json(path, {"a": [1, None, 2.5], "p": Path("q")})
    assert read_json(path) == {"a": [1, None, 2.5], "p": "q"}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise FullError("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(DiskError, match="no space left"):
        write_bytes(path, b"something else")
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    value = {"a": [1.5, float("nan"), (float("-inf"),)], "b": {"c": float("inf"), "d": True}}
    expected = {"a": [1.5, None, [None]], "b": {"c": None, "d": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == expected
    History(tmp_path / "h.jsonl").append(value)
    assert json.loads((tmp_path / "h.jsonl").read_text()) == expected


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", None])
def test_json_that_is_none_is_an_input_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weights = torch.randn(3, 4)
    path = tmp_path / "new" / "c.pt"
    state = {"w": weights, "n": 3, "s": "x", "none": None, "nested": [{"t": weights.double()}]}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path, CPU)
    assert torch.equal(loaded["w"], weights)
    assert torch.equal(loaded["nested"][0]["t"], weights.double())
    assert (loaded["n"], loaded["s"], loaded["none"]) == (3, "x", None)
    assert [p.name for p in path.parent.iterdir()] == ["c.pt"]


def test_a_checkpoint_that_is_cut_off_at_any_point_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"w": torch.randn(100)})
    whole = path.read_bytes()
    for keep in (0, 1, 30, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError, match="corrupt") as caught:
            load_checkpoint(path, CPU)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    for value in ([1, 2], nn.Linear(1, 1)):  # weights_only refuses to unpickle a module
        torch.save(value, path)
        with pytest.raises(InputError, match=r"corrupt.*delete it"):
            load_checkpoint(path, CPU)


def test_a_checkpoint_that_fails_half_way_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"n": 1})

    def half(state: Any, file: BinaryIO) -> None:
        file.write(b"PK")
        raise FullError("no space left")

    monkeypatch.setattr(checkpoints.torch, "save", half)
    with pytest.raises(DiskError, match="no space left"):
        save_checkpoint(path, {"n": 2})
    monkeypatch.undo()
    assert load_checkpoint(path, CPU) == {"n": 1}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)


def test_weights_and_buffers_are_saved_tied_ones_too(tmp_path: Path) -> None:
    model = Tied()
    model.first.weight.data = torch.randn(3, 3).t()  # not contiguous
    path = tmp_path / "new" / "m.safetensors"
    save_weights(path, model)
    loaded = load_file(path)
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_history_grows_by_whole_lines(tmp_path: Path) -> None:
    history = History(tmp_path / "h.jsonl")
    history.append({"arm": "a", "seed": 0, "x": 1})
    assert lines(history.path) == [{"arm": "a", "seed": 0, "x": 1}]
    history.append({"arm": "b", "seed": 0, "x": 2})
    assert [r["x"] for r in lines(history.path)] == [1, 2]


def test_cut_drops_what_one_run_wrote_too_much_and_nothing_else(tmp_path: Path) -> None:
    history = History(tmp_path / "h.jsonl")
    for x, (arm, seed) in enumerate([("a", 0), ("b", 0), ("a", 1), ("a", 0), ("b", 0), ("a", 0)]):
        history.append({"arm": arm, "seed": seed, "x": x})
    history.cut("a", 0, keep=1)
    assert [r["x"] for r in lines(history.path)] == [0, 1, 2, 4]
    before = history.path.read_bytes()
    history.cut("a", 0, keep=1)
    with pytest.warns(UserWarning, match="lacks 5 lines of b, seed 0: they were lost or deleted"):
        history.cut("b", 0, keep=7)
    history.cut("c", 0, keep=0)
    assert history.path.read_bytes() == before
    history.cut("b", 0, keep=0)
    assert [r["x"] for r in lines(history.path)] == [0, 2]


def test_half_a_line_at_the_end_does_not_swallow_the_next(tmp_path: Path) -> None:
    history = History(tmp_path / "h.jsonl")
    history.append({"arm": "a", "seed": 0, "x": 0})
    with history.path.open("a") as file:
        file.write('{"arm": "a", "se')  # killed while writing
    history.cut("a", 0, keep=1)
    history.append({"arm": "a", "seed": 0, "x": 1})
    assert [r["x"] for r in lines(history.path)] == [0, 1]


def test_cut_without_a_file_makes_none(tmp_path: Path) -> None:
    history = History(tmp_path / "h.jsonl")
    history.cut("a", 0, keep=0)
    assert not history.path.exists()


@pytest.mark.parametrize("key", ["a\nb", "a\u2028b", "\x1b[31m", "k" * 5000])
def test_a_key_of_any_kind_is_told_in_one_short_line(key: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"test": {key: []}}))
    with pytest.raises(InputError, match=r"not what evostep wrote \(test\.") as told:
        read_json(tmp_path / "x.json", {"test": {str: float}})
    assert str(told.value).removeprefix(str(tmp_path)).isprintable()
    assert len(str(told.value)) < 400
