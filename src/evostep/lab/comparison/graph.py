"""What a comparison consists of: trunks, starts and arms of each seed, each after another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.seed_run import run_directory, start_directory, trunk_directory
from evostep.lab.comparison.plan import Plan
from evostep.lab.comparison.run import CHECKPOINT, LAST


@dataclass(frozen=True)
class Task:
    """One run, which can be sent to another process.

    Attributes:
        kind: ``"trunk"``, ``"start"`` or ``"arm"``.
        name: the trunk's key, the start's name, or the arm's label.
        seed: of the run.
        folder: where it keeps its files, below the directory of the comparison.
        after: what must be done before, and where it begins; None: it begins with the model.
    """

    kind: str
    name: str
    seed: int
    folder: Path
    after: Task | None = None

    @property
    def run(self) -> str:
        """What its lines of history are called by."""
        return self.name if self.kind == "arm" else f"{self.kind}:{self.name}"

    @property
    def checkpoint(self) -> Path:
        """What it goes on from; of a trunk or a start also where those that come after begin."""
        return self.folder / (CHECKPOINT if self.kind == "arm" else LAST)

    def __str__(self) -> str:
        return f"{self.run} seed {self.seed}"


def make_graph(plan: Plan) -> list[Task]:
    """Return all of a comparison, in the order in which one process does it."""
    tasks: dict[Task, None] = {}
    for seed in plan.seeds:
        for arm in plan.arms:
            folder = run_directory(Path(), arm.label, seed)
            last = Task("arm", arm.label, seed, folder, _before(arm, seed))
            tasks.update(dict.fromkeys(reversed(way_to(last))))
    return list(tasks)


def _before(arm: Arm, seed: int) -> Task:
    """Return the trunk or start at which an arm begins."""
    if arm.start is None:
        folder = trunk_directory(Path(), arm.training, seed)
        return Task("trunk", arm.training.key, seed, folder)
    folder = start_directory(Path(), arm.start, seed)
    return Task("start", arm.start.name, seed, folder, _before(arm.start.arm, seed))


def way_to(task: Task) -> list[Task]:
    """Return a task and all that it comes after, the last one first."""
    return [task, *(way_to(task.after) if task.after else [])]


def undone(tasks: Sequence[Task], runs: Collection[tuple[str, int]]) -> list[Task]:
    """Return what is to be done for all arms to be among the runs that are finished."""
    missing = [task for task in tasks if task.kind == "arm" and (task.name, task.seed) not in runs]
    needed = {one for task in missing for one in way_to(task)}
    return [task for task in tasks if task in needed]


class Waiting:
    """Tasks that wait to be done; each is due when what it comes after is done.

    Args:
        tasks: in the order in which those that are due are taken.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._left = list(tasks)
        self._open = set(tasks)  # not done, be it that they are being done

    def take(self) -> Task | None:
        """Return the first that is due, which waits no more; None where none is due now."""
        due = (task for task in self._left if task.after not in self._open)
        task = next(due, None)
        if task is not None:
            self._left.remove(task)
        return task

    def done(self, task: Task) -> None:
        """Note that a task is done: what comes after it is due."""
        self._open.discard(task)
