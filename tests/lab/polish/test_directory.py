"""All of a directory, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from evostep.errors import DiskError, InputError
from evostep.lab.polish.directory import FOLDER, FORMAT, RESULTS, read_finished, staged
from evostep.lab.polish.partial import Partial
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
    (tmp_path / "plain").mkdir()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


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


def test_what_a_killed_run_has_left_is_deleted_and_a_living_one_keeps_others_out(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    left = out / FOLDER / "results"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    assert read_finished(out, {}) is None
    with staged(out) as folder:
        with pytest.raises(InputError, match=f"another evostep is at work in {out}: wait"):
            staged(out).__enter__()
        (folder / RESULTS).write_text("{}")
    assert [path.name for path in out.iterdir()] == [RESULTS]


def test_what_was_killed_as_its_results_moved_in_is_its_own_to_finish(tmp_path: Path) -> None:
    identity = {"a": 1}
    Partial(tmp_path, identity).mark()
    (tmp_path / "decision.json").write_text("of the killed run")
    assert read_finished(tmp_path, identity) is None
    with staged(tmp_path) as folder:
        (folder / "decision.json").write_text("{}")
        (folder / RESULTS).write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decision.json", RESULTS]
    assert (tmp_path / "decision.json").read_text() == "{}"


def test_a_directory_that_goes_away_is_told_and_not_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def lose() -> None:
        with staged(out) as folder:
            out.rename(tmp_path / "elsewhere")
            write_json(folder / RESULTS, {})

    with pytest.raises(DiskError, match=r"is not the directory any more .*: bring it back"):
        lose()
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
