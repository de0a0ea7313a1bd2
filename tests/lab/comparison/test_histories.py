"""Lines of runs that are done side by side: none lost, none twice, and in the usual order."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evostep.lab.comparison import histories as module
from evostep.lab.comparison.graph import Task
from evostep.lab.comparison.histories import NAME, Histories, history_of

TRUNK = Task("trunk", "t", 0, Path("trunks/t-seed0"))
ARMS = [Task("arm", name, 0, Path(f"runs/{name}-seed0"), TRUNK) for name in ("a", "b", "c")]
TASKS = [TRUNK, *ARMS]


def lines(path: Path) -> list[tuple[str, int]]:
    if not path.exists():
        return []
    return [(r["arm"], r["x"]) for r in map(json.loads, path.read_text().splitlines())]


def write(directory: Path, task: Task, count: int, keep: int = 0, **how: Any) -> None:
    """Write what a run writes, which has `keep` lines in its checkpoint."""
    (directory / task.folder).mkdir(parents=True, exist_ok=True)
    history = history_of(directory, task, how.get("begun", frozenset()), side_by_side=True)
    history.cut(task.run, task.seed, keep)
    for x in range(keep, count):
        history.append({"arm": task.run, "seed": 0, "x": x})


def whole(counts: dict[str, int]) -> list[tuple[str, int]]:
    return [(task.run, x) for task in TASKS for x in range(counts[task.run])]


def test_they_are_moved_in_the_order_of_the_tasks(tmp_path: Path) -> None:
    histories = Histories(tmp_path, TASKS, TASKS, side_by_side=True)
    for task in TASKS:
        write(tmp_path, task, 2)
    common = tmp_path / NAME
    for task, moved in ((ARMS[1], 0), (TRUNK, 2), (ARMS[2], 2), (ARMS[0], 8)):
        histories.done(task)
        assert len(lines(common)) == moved, task
    assert lines(common) == whole(dict.fromkeys(("trunk:t", "a", "b", "c"), 2))
    assert [path.name for path in tmp_path.rglob(NAME)] == [NAME]


def test_where_others_write_none_all_is_written_to_the_common_one(tmp_path: Path) -> None:
    histories = Histories(tmp_path, TASKS, TASKS, side_by_side=False)
    for task in TASKS:
        history = history_of(tmp_path, task, histories.begun, side_by_side=False)
        history.append({"arm": task.run, "seed": 0, "x": 0})
        histories.done(task)
    assert lines(tmp_path / NAME) == whole(dict.fromkeys(("trunk:t", "a", "b", "c"), 1))


def test_a_run_that_was_begun_in_the_common_one_goes_on_in_its_own(tmp_path: Path) -> None:
    """Of `a` three lines were written, and its checkpoint counts two; the trunk is whole."""
    for arm, x in (("trunk:t", 0), ("a", 0), ("a", 1), ("a", 2)):
        with (tmp_path / NAME).open("a") as file:
            file.write(json.dumps({"arm": arm, "seed": 0, "x": x}) + "\n")
    with (tmp_path / NAME).open("a") as file:
        file.write('{"arm": "a", "se')  # the kill fell here
    histories = Histories(tmp_path, TASKS, TASKS, side_by_side=True)
    assert histories.begun == {("trunk:t", 0), ("a", 0)}
    write(tmp_path, TRUNK, 1, keep=1, begun=histories.begun)  # has nothing to add
    assert not (tmp_path / TRUNK.folder / NAME).exists()
    for task in ARMS:
        write(tmp_path, task, 4, keep=2 if task.run == "a" else 0, begun=histories.begun)
    for task in TASKS:
        histories.done(task)
    assert lines(tmp_path / NAME) == whole({"trunk:t": 1, "a": 4, "b": 4, "c": 4})


def test_lines_that_are_lost_are_told(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"arm": "a", "seed": 0, "x": 0}\n')
    begun = Histories(tmp_path, TASKS, TASKS, side_by_side=True).begun
    with pytest.warns(UserWarning, match="lacks 2 lines of a, seed 0: they were lost"):
        write(tmp_path, ARMS[0], 4, keep=3, begun=begun)


class Kill(BaseException):
    """The process is no more."""


def killing(function: Callable[..., Any], at: int, half: bool) -> Callable[..., Any]:
    count = itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(count) == at:
            if half:  # a part of the lines, and of the last one
                source, target = args
                target.write(source.read()[:-20])
                target.flush()
            raise Kill
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("what", ["half", "copyfileobj", "sync", "unlink"])
def test_killed_anywhere_as_they_are_moved_none_is_lost_and_none_twice(
    what: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"trunk:t": 1, "a": 3, "b": 2, "c": 2}
    # `b` was begun in the common file, by a command with one job, and is done in its own
    (tmp_path / NAME).write_text('{"arm": "b", "seed": 0, "x": 0}\n')
    begun = Histories(tmp_path, TASKS, TASKS, side_by_side=True).begun
    for task in TASKS:
        write(tmp_path, task, counts[task.run], keep=task.run == "b", begun=begun)
    with monkeypatch.context() as patch:
        if what == "unlink":
            patch.setattr(Path, "unlink", killing(Path.unlink, at, half=False))
        elif what == "sync":
            patch.setattr(module, "sync", killing(module.sync, at, half=False))
        else:
            half = what == "half"
            patch.setattr(shutil, "copyfileobj", killing(shutil.copyfileobj, at, half))
        try:
            Histories(tmp_path, TASKS, [], side_by_side=at % 2 == 0)
            killed = False
        except Kill:
            killed = True
    assert killed or at > 3
    Histories(tmp_path, TASKS, [], side_by_side=False)
    assert lines(tmp_path / NAME) == whole(counts)
    assert [path.name for path in tmp_path.rglob(NAME)] == [NAME]


@pytest.mark.parametrize("line", [b"[1]", b'{"arm": [], "seed": 0}', b"\xff", b'{"arm": "a"}'])
def test_lines_that_are_not_ours_do_no_harm(line: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(line + b"\n")
    assert Histories(tmp_path, TASKS, TASKS, side_by_side=True).begun == frozenset()
