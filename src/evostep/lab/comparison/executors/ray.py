"""Runs as tasks of Ray, on a cluster whose machines share the directory; or on this machine.

Ray starts a task whose worker has died again, elsewhere perhaps, and it goes on from its checkpoint
in the directory. Source: https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from evostep.errors import InputError, needs_package, warn
from evostep.lab.comparison.executors.base import (
    Board,
    Execution,
    Finished,
    LostError,
    Message,
    Reporter,
    Work,
    Worker,
    join,
    portable,
)
from evostep.lab.comparison.graph import Task, Waiting

CONNECT_SECONDS = 60  # until a cluster must have answered
RETRIES = 3  # of a run whose worker dies
_LOOK_SECONDS = 0.5


def check_ray(how: Execution) -> None:
    """Find out whether Ray is there, and its cluster answers.

    Raises:
        InputError: it is not installed, or there is no answer within `CONNECT_SECONDS`.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise needs_package("--executor ray", "ray", "evostep[ray]", error) from error
    if how.address is not None:
        _probe(how.address)


def run_ray(worker: Worker, tasks: Sequence[Task], how: Execution) -> Finished:
    """Do the tasks as Ray tasks; see `Executor`."""
    import ray

    if not tasks:
        return
    cpus = worker.work.threads if how.num_cpus is None else how.num_cpus
    with _cluster(ray, how, cpus):
        _check_room(ray, how, cpus)
        waiting, board = Waiting(tasks), Board(worker.watch)
        post = ray.remote(_Post).options(num_cpus=0).remote()
        work = ray.put(worker.work)
        do = ray.remote(_do).options(num_cpus=cpus, num_gpus=how.num_gpus or 0, max_retries=RETRIES)
        running: dict[Any, Task] = {}
        lost: dict[Task, str] = {}
        while True:
            while (how.jobs is None or len(running) < how.jobs) and (due := waiting.take()):
                running[do.remote(work, post, due)] = due
            if not running:
                break
            ended, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
            for task, message in ray.get(post.take.remote()):
                board.hear(task, message)
            for reference in ended:
                task = running.pop(reference)
                try:
                    kind, told = ray.get(reference)
                except ray.exceptions.RayError as error:
                    board.lose(task, _cause(error))
                    lost[task] = _cause(error)
                    continue
                if kind == "error":
                    raise told
                board.end(task)
                waiting.done(task)
                yield task, told
        if lost:
            raise LostError(lost)


def _cause(error: Exception) -> str:
    """Return in a few words why Ray has given a task up."""
    first = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"its worker died, and died again {RETRIES} times ({type(error).__name__}: {first:.150})"


def _check_room(ray: Any, how: Execution, cpus: float) -> None:
    """Tell where no machine is there that has what a run asks for: it would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": cpus, "GPU": how.num_gpus or 0}
    if any(all(node.get(name, 0) >= n for name, n in wanted.items()) for node in nodes):
        return
    told = ", ".join(f"{n:g} {name}" for name, n in wanted.items() if n)
    if how.address is None:
        raise InputError(f"this machine has less than {told}, which a run asks for: ask for less")
    warn(f"no machine of the cluster has {told}, which a run asks for: it waits until one joins")


@contextmanager
def _cluster(ray: Any, how: Execution, cpus: float) -> Iterator[None]:
    """Join a cluster, or start one on this machine, until the context is left."""
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if how.address is not None:
        settings["address"] = how.address
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to its makers
        settings["include_dashboard"] = False
        if how.jobs is not None:
            settings["num_cpus"] = max(1, round(how.jobs * cpus))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**settings)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's leaves without putting anything away
        yield
    finally:
        ray.shutdown()


_PROBE = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
except BaseException as error:
    text = " ".join(str(error).split())
    print(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    sys.exit(1)
"""


def _probe(address: str) -> None:
    """Try an address in a process of its own: Ray ends, or blocks, the one in which it fails.

    Raises:
        InputError: there is no cluster, or none that answers in time.
    """
    cure = "see that it is started there (`ray status`), or leave --address out"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            capture_output=True,
            text=True,
            timeout=CONNECT_SECONDS,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"--address {address} has not answered in {CONNECT_SECONDS} seconds: {cure}"
        ) from error
    if done.returncode:
        told = done.stdout.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise InputError(f"--address {address} is no Ray cluster ({told:.200}): {cure}")


# In a worker of Ray


class _Post:
    """Keeps what workers tell until it is taken: an actor."""

    def __init__(self) -> None:
        self._messages: list[tuple[Task, Message]] = []

    def put(self, task: Task, message: Message) -> None:
        self._messages.append((task, message))

    def take(self) -> list[tuple[Task, Message]]:
        taken, self._messages = self._messages, []
        return taken


_JOINED: dict[str, Worker] = {}  # in this process: one for the command that it works for last


def _do(work: Work, post: Any, task: Task) -> tuple[str, Any]:
    """Do a task, and return ``"done"`` with its result, or ``"error"`` with the error."""
    import ray

    reporter = Reporter(lambda message: post.put.remote(task, message))
    post.put.remote(task, ("begin", None))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = reporter.show_warning  # type: ignore[assignment]
            worker = _JOINED.get(work.key)
            if worker is None:
                _JOINED.clear()
                worker = _JOINED[work.key] = join(work, reporter.watch)
            worker.watch = reporter.watch
            result = worker.do(task)
            reporter.flush()
            ray.get(post.put.remote(task, ("end", None)))  # all has arrived when the task has ended
            return "done", result
    except Exception as error:
        return "error", portable(error)
