"""What executors share: how much at once, and a worker, which does one task after the other.

An executor does tasks of a comparison (see `graph.Task`), each after the one that it comes after,
and yields each with its result as soon as it is done. Whoever does a task, it is done by a `Worker`
in the same way: from its checkpoint in the directory, with the thread count of the command, so that
it is the same bits wherever and beside whatever it runs, and after whatever has stopped it.
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from evostep._version import __version__
from evostep.errors import DiskError, InputError, counted, reason, warn
from evostep.lab.arms.seed_run import SeedRun, Watch
from evostep.lab.checkpoints import drop_checkpoint
from evostep.lab.claims import claimed, keep_to
from evostep.lab.comparison.directory import check_directory
from evostep.lab.comparison.environment import describe_environment
from evostep.lab.comparison.graph import Task
from evostep.lab.comparison.histories import Names, history_of
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.comparison.run import run_arm, run_start, run_trunk
from evostep.lab.data.parts import Parts, cut
from evostep.lab.options import Options, flag
from evostep.lab.storage import make_folder, write_json, writing

Result = dict[str, Any] | None  # of an arm: its entry of results.json
Message = tuple[str, Any]
Finished = Generator[tuple[Task, Result], None, None]

PATIENCE_SECONDS = 60.0  # until who did a task before must have left it
_TELL_SECONDS = 0.2  # between two messages about forwards


class LostError(InputError):
    """Processes died, and the runs that they did are not finished: what they saved is kept.

    Attributes:
        lost: what each died of.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, lost: Mapping[Task, str]) -> None:
        self.lost = dict(lost)
        told = "; ".join(f"{task}: {why}" for task, why in lost.items())
        super().__init__(
            f"{counted(len(lost), 'run')} lost with the process ({told}): what was saved is kept, "
            "and the same command goes on from there, with fewer --jobs where memory ran out"
        )


@dataclass(frozen=True)
class Execution:
    """Where the runs of a comparison are done, and how many at once: no result hangs on it.

    Attributes:
        executor: a name of `EXECUTORS`.
        jobs: runs at once; None: one, and of Ray as many as there is room for.
        address: of a Ray cluster; None: one is started on this machine, and ended with the command.
        num_cpus: of a Ray worker for one run; None: as many as it has threads.
        num_gpus: of a Ray worker for one run.

    Raises:
        InputError: a number out of its range, or an option of another executor.
    """

    executor: str = "local"
    jobs: int | None = None
    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs must be at least 1, got {self.jobs}")
        for name in ("address", "num_cpus", "num_gpus"):
            value = getattr(self, name)
            if value is not None and self.executor != "ray":
                raise InputError(
                    f"{flag(name)} {value} is for --executor ray: add that, or leave it out"
                )
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise InputError(f"{flag(name)} must be a finite number >= 0, got {value}")

    @property
    def side_by_side(self) -> bool:
        """Whether runs are done in other processes than that of the command."""
        return self.executor != "local" or (self.jobs or 1) > 1


@dataclass(frozen=True)
class Work:
    """What a process has to know to take part in a comparison: what it does not read by itself.

    Attributes:
        key: of the command, and of no other.
        options: as given to the command.
        directory: of the comparison.
        begun: whose lines the common history had as the command began.
        threads: of torch.
        command: and `date`: as the results are to tell them.
        place: where the command was given, which relative paths begin at.
        versions: of what bits hang on.
    """

    key: str
    options: Options
    directory: Path
    begun: Names
    threads: int
    command: str
    date: str
    place: Path
    versions: Mapping[str, str]


def describe_work(plan: Plan, directory: Path, begun: Names) -> Work:
    """Return the work of the command that runs."""
    told = describe_environment(plan.device)
    return Work(
        key=secrets.token_hex(8),
        options=plan.options,
        directory=directory,
        begun=begun,
        threads=torch.get_num_threads(),
        command=told["command"],
        date=told["date"],
        place=Path.cwd(),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    return {"evostep": __version__, "torch": torch.__version__}


class Worker:
    """Does tasks of a comparison in this process.

    Args:
        plan: of the comparison.
        work: what the command asks for.
        watch: is told how it goes.
        side_by_side: whether other processes do tasks at the same time.
    """

    def __init__(self, plan: Plan, work: Work, watch: Watch, *, side_by_side: bool) -> None:
        self.work, self.watch = work, watch
        self._plan, self._side_by_side = plan, side_by_side
        facts = describe_environment(plan.device)
        self._environment = {**facts, "command": work.command, "date": work.date}
        self._parts: tuple[int, Parts] | None = None  # of the last seed

    def do(self, task: Task) -> Result:
        """Do a task, or what is missing of it.

        Who did it before, and is about to end, is waited for.

        Returns:
            Of an arm the entry of ``runs`` in ``results.json``, which is also in its folder.
        """
        directory, plan = self.work.directory, self._plan
        folder = directory / task.folder
        with writing(folder):
            make_folder(folder)
        with claimed(folder, patience=PATIENCE_SECONDS):
            seed_run = self._seed_run(task)
            if task.after is None:
                run_trunk(seed_run, *plan.trunks[task.name])
                return None
            before = directory / task.after.checkpoint
            if task.kind == "start":
                run_start(seed_run, *plan.starts[task.name], before)
                return None
            arm = next(arm for arm in plan.arms if arm.label == task.name)
            result = run_arm(seed_run, arm, before, plan.budgets[arm.label])
            result["environment"] = self._environment
            write_json(folder / "result.json", result)
            drop_checkpoint(directory / task.checkpoint)
            return result

    def _seed_run(self, task: Task) -> SeedRun:
        plan, work = self._plan, self.work
        if self._parts is None or self._parts[0] != task.seed:
            self._parts = None  # before the next are cut: not both at once
            self._parts = task.seed, cut(plan.data, plan.splits[task.seed], plan.device)
        history = history_of(work.directory, task, work.begun, side_by_side=self._side_by_side)
        return SeedRun(
            plan.options,
            task.seed,
            self._parts[1],
            plan.sizes,
            plan.device,
            work.directory,
            history,
            self.watch,
        )


def join(work: Work, watch: Watch) -> Worker:
    """Return a worker of this process, which was started for it.

    It reads the data by itself, and sees that it comes to the same plan and examples.

    Raises:
        InputError: other versions, other data, or data or a directory that are not here.
    """
    if _versions() != work.versions:
        raise InputError(
            f"the worker on {socket.gethostname()} has {_versions()}, and the command "
            f"{dict(work.versions)}: install the same on all machines"
        )
    keep_to(work.directory)
    with suppress(OSError):  # where it is not here, relative paths are not found, which is told
        os.chdir(work.place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the command has told
        plan = make_plan(work.options)
    if torch.get_num_threads() != work.threads:
        torch.set_num_threads(work.threads)
    check_directory(plan, work.directory)
    return Worker(plan, work, watch, side_by_side=True)


class Reporter:
    """Tells the process that shares out the work how a task goes.

    Args:
        send: a message to it.
    """

    def __init__(self, send: Callable[[Message], object]) -> None:
        self._send = send
        self._forwards, self._told = 0, 0.0
        self.watch = Watch(
            advance=self._advance,
            say=lambda text: self._tell("say", text),
            warn=lambda text: self._tell("warn", text),
        )

    def _advance(self, forwards: int) -> None:
        self._forwards += forwards
        if time.monotonic() - self._told > _TELL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell of the forwards that were not told yet."""
        self._told = time.monotonic()
        if self._forwards:
            self._send(("advance", self._forwards))
            self._forwards = 0

    def _tell(self, kind: str, text: str) -> None:
        self.flush()
        self._send((kind, text))

    def show_warning(
        self, message: Warning | str, category: type[Warning], file: str, line: int, *_: Any
    ) -> None:
        """Take the place of `warnings.showwarning`: the other process shows it."""
        ours = category if category.__module__ == "builtins" else UserWarning
        self._tell("warning", (str(message), ours, file, line))  # type: ignore[arg-type]


class Board:
    """Takes what reporters send, and shows it as that of one run is.

    Args:
        watch: of the command.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._latest: dict[Task, str] = {}
        self._spent: dict[Task, int] = {}
        self._shown: dict[Any, Any] = {}  # warnings: each is shown once, however many tell it

    def begin(self, task: Task) -> None:
        """Note that a task is begun, or begun again: what it spends is told from its start."""
        self._watch.advance(-self._spent.pop(task, 0))

    def hear(self, task: Task, message: Message) -> None:
        """Take a message about a task."""
        kind, told = message
        if kind == "begin":
            self.begin(task)
        elif kind == "advance":
            self._spent[task] = self._spent.get(task, 0) + told
            self._watch.advance(told)
        elif kind == "say":
            self._latest[task] = told
            self._watch.say(" | ".join(self._latest.values()))
        elif kind == "end":
            self.end(task)
        elif kind == "warn":
            self._watch.warn(told)
        else:
            text, category, file, line = told
            warnings.warn_explicit(text, category, file, line, registry=self._shown)

    def end(self, task: Task) -> None:
        """Note that a task is not at work any more."""
        self._latest.pop(task, None)

    def lose(self, task: Task, why: str) -> None:
        """Tell that a task is lost."""
        self.end(task)
        self._watch.warn(f"{task} was lost: {why}; the others go on")


def portable(error: Exception) -> Exception:
    """Return an error as it can be sent to another process; its traceback becomes a note.

    Example:
        >>> str(portable(InputError("no such file: name another")))
        'no such file: name another'
    """
    told = "".join(traceback.format_exception(error))
    sent: Exception = error
    try:
        known = type(error).__module__.partition(".")[0] in ("builtins", "evostep", "torch")
        same = known and str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:  # whatever a class of an error does when it is pickled
        same = False
    if not same:
        if isinstance(error, InputError):
            sent = (DiskError if error.exit_code == DiskError.exit_code else InputError)(str(error))
        else:
            sent = RuntimeError(reason(error))
    sent.__cause__ = sent.__context__ = sent.__traceback__ = None
    sent.add_note(f"In the process that did the run:\n{told}")
    return sent


def warn_of_crowding(jobs: int, threads: int) -> None:
    """Warn where more threads are to run at once than there are cores."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if jobs * threads > cores > 1:
        fewer = f"--jobs {max(1, cores // threads)}"
        better = "--threads 1 (other bits, but equally good ones)" if threads > 1 else fewer
        warn(
            f"--jobs {jobs} with {counted(threads, 'thread')} each on {counted(cores, 'core')} get "
            f"in each other's way: take {better}"
        )


def _nothing(_: Execution) -> None:
    pass


@dataclass(frozen=True)
class Executor:
    """Does tasks of a comparison.

    Attributes:
        run: does tasks, of which each stands after the one that it comes after, and yields each
            with its result as it is done. The worker is that of this process: its work is what
            other processes need, and its watch shows how it goes. It raises `LostError` where
            processes died and all that could be done without them is done, and what a run raises,
            when the others are stopped.
        check: raises an `InputError` where it cannot be used, before anything is written.
    """

    run: Callable[[Worker, Sequence[Task], Execution], Finished]
    check: Callable[[Execution], None] = _nothing
