"""The history of a comparison whose runs are done side by side: a file for each, then one for all.

A run that has a process of its own writes ``history.jsonl`` in its own folder. The process that
shares out the work moves it to the end of the common ``history.jsonl`` when the run and all those
before it are done, so that the lines stand as one process would have written them. At every moment
one rule tells where a run's lines are: where it has a file of its own, that has them all, and what
the common one has of them is a copy, or older, and is dropped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evostep.lab.comparison.graph import Task
from evostep.lab.storage import History, lines_kept, replacing, sync, writing

NAME = "history.jsonl"
Names = frozenset[tuple[str, int]]


class OwnHistory(History):
    """The history of one run in a file of its own.

    What an earlier command wrote of the run in the common file is taken over with the first line
    that is added: a run that has none to add leaves its lines where they are.

    Args:
        path: of the file.
        common: has lines of the run; None: it has none.
    """

    def __init__(self, path: Path, common: Path | None) -> None:
        super().__init__(path)
        self._common = common
        self._taken: tuple[str, int, int] | None = None  # what to take over: run, seed, lines

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line, as `History`."""
        if self._taken is not None and self._common is not None:
            arm, seed, keep = self._taken
            with replacing(self.path) as part, self._common.open("rb") as lines:
                found = lines_kept(lines, arm, seed, keep)
                part.write_bytes(b"".join(kept for _, kept, is_own in found if is_own))
            self._taken = None
            super().cut(arm, seed, keep)  # tells what is lost
        super().append(record)

    def cut(self, arm: str, seed: int, keep: int) -> None:
        """Drop what the run wrote after its last checkpoint, as `History`."""
        if self._common is not None and not self.path.exists():
            self._taken = arm, seed, keep
        else:
            super().cut(arm, seed, keep)


class Histories:
    """Moves what runs have written in files of their own to the common one, in order.

    Args:
        directory: of the comparison.
        tasks: all of it, in the order in which one process would do them.
        undone: those of them that are still to be done.
        side_by_side: whether they will write files of their own. Where not, those that a command
            before has left are gone on with, and the others written to the common one.
    """

    def __init__(
        self, directory: Path, tasks: Sequence[Task], undone: Iterable[Task], *, side_by_side: bool
    ) -> None:
        self._directory = directory
        self._common = History(directory / NAME)
        self._left = list(tasks)
        self._undone = set(undone)
        self.begun: Names = frozenset()
        if side_by_side or any((directory / task.folder / NAME).exists() for task in tasks):
            self.begun = _names(self._common)
        self._move()

    def done(self, task: Task) -> None:
        """Note that a task is done, and move what can be moved."""
        self._undone.discard(task)
        self._move()

    def _move(self) -> None:
        while self._left and self._left[0] not in self._undone:
            task = self._left.pop(0)
            own = self._directory / task.folder / NAME
            if own.exists():
                if (task.run, task.seed) in self.begun:
                    self._common.cut(task.run, task.seed, 0)
                with writing(self._common.path):
                    with own.open("rb") as lines, self._common.path.open("ab") as file:
                        shutil.copyfileobj(lines, file)
                    sync(self._common.path)
                    sync(self._directory)
                    own.unlink()


def history_of(directory: Path, task: Task, begun: Names, *, side_by_side: bool) -> History:
    """Return where a task writes its lines.

    Args:
        directory: of the comparison.
        task: of it.
        begun: whose lines the common history had as the command began.
        side_by_side: whether other processes write at the same time.
    """
    common, own = directory / NAME, directory / task.folder / NAME
    if not side_by_side and not own.exists():
        return History(common)
    return OwnHistory(own, common if (task.run, task.seed) in begun else None)


def _names(history: History) -> Names:
    """Return whose lines a history has; what a kill has left of a line is dropped."""
    found: set[tuple[str, int]] = set()
    broken = False
    if not history.path.exists():
        return frozenset()
    with history.path.open("rb") as lines:
        for line in lines:
            record = _read(line)
            broken = broken or record is None or not line.endswith(b"\n")
            arm, seed = (record or {}).get("arm"), (record or {}).get("seed")
            if isinstance(arm, str) and isinstance(seed, int):
                found.add((arm, seed))
    if broken:
        with (
            history.path.open("rb") as lines,
            replacing(history.path) as part,
            part.open("wb") as file,
        ):
            file.writelines(line.rstrip(b"\r\n") + b"\n" for line in lines if _read(line))
    return frozenset(found)


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
