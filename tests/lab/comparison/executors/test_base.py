"""What executors share: what may be asked for, and what crosses from one process to another."""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

from evostep.errors import DiskError, InputError, is_out_of_memory
from evostep.lab.arms.seed_run import Watch
from evostep.lab.checkpoints import CorruptError
from evostep.lab.comparison.executors import EXECUTORS
from evostep.lab.comparison.executors import base as module
from evostep.lab.comparison.executors.base import (
    Board,
    Execution,
    LostError,
    Reporter,
    describe_work,
    join,
    portable,
    warn_of_crowding,
)
from evostep.lab.comparison.graph import Task
from evostep.lab.comparison.plan import make_plan
from evostep.lab.options import Options

ONE = Task("arm", "sgd", 3, Path("runs/sgd-seed3"))
OTHER = Task("trunk", "t", 3, Path("trunks/t-seed3"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"jobs": -2, "executor": "ray"}, "--jobs must be at least 1, got -2"),
        ({"address": "auto"}, "--address auto is for --executor ray"),
        ({"num_cpus": 2.0}, "--num-cpus 2.0 is for --executor ray"),
        ({"num_gpus": 0.0}, "--num-gpus 0.0 is for --executor ray"),
        ({"executor": "ray", "num_gpus": -1.0}, "--num-gpus must be a finite number >= 0, got -1"),
        ({"executor": "ray", "num_cpus": float("nan")}, "--num-cpus must be a finite number"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Execution(**given)


def test_only_one_local_job_is_done_in_this_process() -> None:
    assert not Execution().side_by_side
    assert not Execution(jobs=1).side_by_side
    assert Execution(jobs=2).side_by_side
    assert all(
        Execution(executor=name, jobs=1).side_by_side for name in EXECUTORS.keys() - {"local"}
    )


class OddError(Exception):
    """An error of a user's, which cannot be made again from what it tells."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InputError("no: yes"), InputError, "no: yes"),
        (DiskError("full: free"), DiskError, "full: free"),
        (CorruptError("x is corrupt"), InputError, "x is corrupt: delete it, and the part"),
        (FileNotFoundError(2, "No such file", "x"), FileNotFoundError, "No such file: 'x'"),
        (ZeroDivisionError(), ZeroDivisionError, ""),
        (OddError(1, 2), RuntimeError, "OddError: 1 and 2"),
    ],
)
def test_errors_cross_as_what_they_are(error: Exception, kind: type, text: str) -> None:
    try:
        raise error
    except Exception as raised:
        sent = pickle.loads(pickle.dumps(portable(raised)))
    assert isinstance(sent, kind)
    assert text in str(sent)
    assert str(sent).count(text) == 1 or not text
    assert getattr(sent, "exit_code", None) == getattr(error, "exit_code", None)
    assert "test_base.py" in "".join(sent.__notes__)  # where, for --verbose


def test_memory_that_ran_out_is_still_known() -> None:
    import torch

    for error in (MemoryError("of 3 GB"), torch.OutOfMemoryError("CUDA")):
        assert is_out_of_memory(pickle.loads(pickle.dumps(portable(error))))


def test_what_is_lost_is_one_line_that_names_it() -> None:
    text = str(LostError({ONE: "it was killed", OTHER: "it died"}))
    assert text.startswith(
        "2 runs lost with the process (sgd seed 3: it was killed; trunk:t seed 3:"
    )
    assert "\n" not in text
    assert LostError.exit_code == 1


def test_what_a_process_tells_is_shown_as_its_own() -> None:
    told: list[Any] = []
    board = Board(Watch(advance=told.append, say=told.append, warn=told.append))
    reporters = {
        task: Reporter(
            lambda message, task=task: board.hear(task, pickle.loads(pickle.dumps(message)))
        )
        for task in (ONE, OTHER)
    }
    reporters[ONE].watch.advance(5)
    reporters[ONE].watch.advance(7)  # held back: it is too soon
    assert told == [5]
    reporters[ONE].watch.say("a")
    reporters[OTHER].watch.say("b")
    reporters[ONE].watch.warn("c")
    assert told == [5, 7, "a", "a | b", "c"]
    board.end(ONE)
    reporters[OTHER].watch.say("d")
    assert told[-1] == "d"
    board.begin(ONE)  # again: what it spent is told anew
    assert told[-1] == -12
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for reporter in reporters.values():  # the same from two processes is shown once
            reporter.show_warning(UserWarning("w"), UserWarning, "x.py", 3)
    assert [(str(w.message), w.filename, w.lineno) for w in caught] == [("w", "x.py", 3)]


def test_threads_that_get_in_each_others_way_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(module.sys, "platform", "linux")
    with pytest.warns(UserWarning, match="--jobs 2 with 2 threads each on 2 cores .* --threads 1"):
        warn_of_crowding(2, 2)
    with pytest.warns(UserWarning, match="--jobs 3 with 1 thread each on 2 cores .* --jobs 2"):
        warn_of_crowding(3, 1)
    warn_of_crowding(2, 1)


def test_a_worker_of_other_versions_or_without_the_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(
        Options(model="mlp", train_size=60, test_size=50, fitness_size=40, epochs=1, evolve_from=0)
    )
    work = describe_work(plan, tmp_path / "nowhere", frozenset())
    with pytest.raises(InputError, match=r"nowhere is not here .* all machines share"):
        join(work, Watch())
    monkeypatch.setattr(module, "__version__", "0.0.1")
    with pytest.raises(InputError, match=r"has .*0\.0\.1.* install the same on all machines"):
        join(work, Watch())
