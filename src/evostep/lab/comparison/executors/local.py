"""Runs on this machine: one after the other in this process, or several in processes of their own.

Processes are spawned, not forked: threads of torch do not live on in a fork. Each reads the data by
itself. They do not hear Ctrl-C, which a terminal sends to all; the process that shares out the work
stops them, cleanly, by SIGTERM. Where it dies itself, they see the end of their connection and die.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from evostep.lab.comparison.executors.base import (
    Board,
    Execution,
    Finished,
    LostError,
    Reporter,
    Work,
    Worker,
    join,
    portable,
    warn_of_crowding,
)
from evostep.lab.comparison.graph import Task, Waiting

_STOP_SECONDS = 30.0  # after which a process that was told to stop is killed
_STOPPED = 128 + signal.SIGTERM


def run_local(worker: Worker, tasks: Sequence[Task], how: Execution) -> Finished:
    """Do the tasks here, or `how.jobs` at a time in processes of their own; see `Executor`."""
    jobs = how.jobs or 1
    if jobs == 1:
        for task in tasks:
            yield task, worker.do(task)
    elif tasks:
        warn_of_crowding(jobs, worker.work.threads)
        yield from _side_by_side(worker, tasks, min(jobs, len(tasks)))


def _side_by_side(worker: Worker, tasks: Sequence[Task], jobs: int) -> Finished:
    board, waiting = Board(worker.watch), Waiting(tasks)
    lost: dict[Task, str] = {}
    children: list[_Child] = []
    try:
        while len(children) < jobs:
            children.append(_Child(worker.work))
        while True:
            children[:] = [one for one in children if one.task or one.process.is_alive()]
            for child in children:
                if child.task is None and (due := waiting.take()) is not None:
                    board.begin(due)
                    child.give(due)
            busy = [child for child in children if child.task is not None]
            if not busy:
                break
            wait([one for child in busy for one in (child.connection, child.process.sentinel)])
            for child in busy:
                task = child.task
                assert task is not None
                for kind, told in child.heard():
                    if kind == "done":
                        child.task = None
                        board.end(task)
                        waiting.done(task)
                        yield task, told
                    elif kind == "error":
                        raise told
                    elif kind == "died":  # no other is started: memory may be short
                        if child.task is not None:
                            board.lose(task, told)
                            lost[task] = told
                            child.task = None
                    else:
                        board.hear(task, (kind, told))
    finally:
        _stop(children)
    if not lost and (never := waiting.take()) is not None:
        lost[never] = "no process was left to do it"
    if lost:
        raise LostError(lost)


class _Child:
    """A process of our own, and what it does."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work))
        self.task: Task | None = None
        with _deaf():
            self.process.start()
        theirs.close()  # so that it ends when the process does

    def give(self, task: Task) -> None:
        """Let it do a task; that it is dead is heard later."""
        self.task = task
        with suppress(OSError):
            self.connection.send(task)

    def heard(self) -> Iterator[tuple[str, Any]]:
        """Yield what it has sent; at its end that it has died, and why."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self.process.join()
        if not self.process.is_alive():
            code = self.process.exitcode or 0
            yield "died", _cause(code)


def _cause(code: int) -> str:
    """Return in words what a process died of."""
    if code == -signal.SIGKILL:
        return "its process was killed (SIGKILL), by the system perhaps where memory ran out"
    if code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    if code == _STOPPED:
        return "its process was stopped (SIGTERM)"
    return f"its process ended with exit status {code}"


def _stop(children: Sequence[_Child]) -> None:
    """Stop processes: cleanly, and where that takes long, or is interrupted, at once."""
    until = time.monotonic() + _STOP_SECONDS
    try:
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.join(max(0.0, until - time.monotonic()))
    finally:
        for child in children:
            child.process.kill()
        for child in children:
            child.process.join(_STOP_SECONDS)


@contextmanager
def _deaf() -> Iterator[None]:
    """Let processes that are started not hear Ctrl-C; here it is heard afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the process


def _serve(connection: Connection, work: Work) -> None:
    """Do the tasks that come, until there is nobody any more who sends them."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    sys.stdout = sys.stderr  # what a metric of the user's prints is not the answer
    sending = threading.RLock()  # warnings may come from any thread

    def send(message: tuple[str, Any]) -> None:
        with sending, _noticing():
            connection.send(message)

    reporter = Reporter(send)
    warnings.showwarning = reporter.show_warning  # type: ignore[assignment]
    try:
        worker = join(work, reporter.watch)
        while True:
            with _noticing():
                task = connection.recv()
            result = worker.do(task)
            reporter.flush()
            send(("done", result))
    except KeyboardInterrupt:
        sys.exit(_STOPPED)
    except _GoneError:
        os._exit(_STOPPED)
    except Exception as error:
        send(("error", portable(error)))


class _GoneError(BaseException):
    """There is nobody at the other end any more."""


@contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise _GoneError from None


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(_STOPPED)
