"""All of a directory, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from evostep.errors import InputError
from evostep.lab.polish.directory import FORMAT, RESULTS, read_finished, staged
from evostep.lab.storage import write_json


@pytest.mark.parametrize("there", [False, True])
def test_it_appears_when_all_is_written(there: bool, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    if there:
        out.mkdir(parents=True)
    with staged(out) as folder:
        (folder / RESULTS).write_text("{}")
        assert not (out / RESULTS).exists()
    assert [path.name for path in out.iterdir()] == [RESULTS]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    if not there:
        assert out.stat().st_mode == tmp_path.stat().st_mode


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_nothing_is_left_of_what_failed(error: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        with staged(tmp_path / "a" / "out") as folder:
            (folder / "half").write_text("")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staged(Path()) as folder:
        (folder / RESULTS).write_text("{}")
    assert [path.name for path in Path().iterdir()] == [RESULTS]


def test_what_is_finished_is_read_by_what_was_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert read_finished(out, {}) is None
    out.mkdir()
    assert read_finished(out, {}) is None
    (out / ".evostep-killed").mkdir()
    assert read_finished(out, {}) is None
    write_json(out / RESULTS, {"format": FORMAT, "arguments": {"a": 1, "w": "sha256:1"}})
    assert read_finished(out, {"a": 1, "w": "sha256:1"}) is not None
    with pytest.raises(InputError, match="--a was 1, now not given"):
        read_finished(out, {"a": None, "w": "sha256:1"})
    with pytest.raises(InputError, match="the file of --w has changed"):
        read_finished(out, {"a": 1, "w": "sha256:2"})
    (out / RESULTS).write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_finished(out, {})
    write_json(out / RESULTS, {"runs": []})
    with pytest.raises(InputError, match="results of something else"):
        read_finished(out, {})


@pytest.mark.parametrize("again", [False, True])
def test_what_a_killed_run_has_left_is_deleted_and_no_living_one_s(
    again: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / ".evostep-writing-1").mkdir()
    if again:
        out.mkdir()  # what is finished so far is kept there
    with staged(tmp_path / "other") as living, staged(out) as folder:
        assert {path for path in tmp_path.iterdir() if path != out} - {folder} == {living}
        (folder / RESULTS).write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
