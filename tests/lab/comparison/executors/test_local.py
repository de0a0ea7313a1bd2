"""Runs in processes of their own: the same bits for any number, whatever becomes of them."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evostep.errors import InputError
from evostep.lab.comparison import compare as compare_module
from evostep.lab.comparison.compare import compare
from evostep.lab.comparison.directory import finished_runs
from evostep.lab.comparison.executors import Execution
from evostep.lab.comparison.executors.base import LostError
from evostep.lab.comparison.graph import make_graph, way_to
from evostep.lab.comparison.histories import NAME
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.options import Options
from evostep.lab.report.page import ReportPaths
from evostep.lab.storage import read_json

pytestmark = pytest.mark.filterwarnings("ignore:--jobs .* in each other's way:UserWarning")
OPTIONS: dict[str, Any] = {
    "model": "mlp",
    "train_size": 100,
    "test_size": 50,
    "fitness_size": 40,
    "epochs": 3,
    "evolve_from": 1,
    "generations": 3,
    "population": 4,
    "sigma": 0.2,
    "lr": 0.1,
    "seeds": 2,
    "threads": 1,
    "arms": [
        "sgd",
        "mutation",
        {"method": "snes-head", "label": "head", "start_from": "mutation"},
    ],
    "metric": "metric_that_kills:accuracy",
    "higher_is_better": True,
}
# A metric of the user's, which kills the process of a run once, at its tenth call there
METRIC = """
import os, signal
from pathlib import Path

calls = 0

def accuracy(outputs, targets):
    global calls
    if str(os.getpid()) != os.environ["OF_THE_COMMAND"]:
        calls += 1
        if calls == 10 and os.environ.get("KILL_ONCE"):
            try:
                Path(os.environ["KILL_ONCE"]).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
    return (outputs.argmax(1) == targets).float().mean().item()
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("metric")
    (folder / "metric_that_kills.py").write_text(METRIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("OF_THE_COMMAND", str(os.getpid()))
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        yield make_plan(Options(**OPTIONS))


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ReportPaths(Path("table.md"), Path("report.html"), ())
    monkeypatch.setattr(compare_module, "write_report", lambda _: paths)


def run(plan: Plan, directory: Path, **how: Any) -> None:
    compare(plan, directory, Console(quiet=True), how=Execution(**how))


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes that is never stopped."""
    directory = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "write_report", lambda _: None)
        run(plan, directory)
    return bits(directory)


def timeless(value: Any) -> Any:
    apart = ("seconds", "date", "command", "commit")
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in apart}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def bits(directory: Path) -> dict[str, Any]:
    """Every file by its name, without times."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content: Any = None  # of a checkpoint of a trunk, whose seconds are inside
        if path.suffix == ".json":
            content = timeless(read_json(path))
        elif path.suffix == ".jsonl":
            content = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            content = path.read_bytes()
        found[str(path.relative_to(directory))] = content
    return found


def test_a_process_that_is_killed_loses_its_run_alone_and_the_same_command_goes_on(
    plan: Plan, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another number of jobs, too: here one, which goes on with what two have left."""
    out = tmp_path / "out"
    monkeypatch.setenv("KILL_ONCE", str(tmp_path / "killed"))
    with (
        pytest.warns(UserWarning, match=r"seed \d was lost: its process was killed \(SIGKILL\)"),
        pytest.raises(LostError, match=r"1 run lost .* seed \d: its process was killed") as caught,
    ):
        run(plan, out, jobs=2)
    (lost,) = caught.value.lost
    others = [t for t in make_graph(plan) if t.kind == "arm" and lost not in way_to(t)]
    assert len(others) >= 3
    assert finished_runs(out).keys() == {(task.name, task.seed) for task in others}
    assert multiprocessing.active_children() == []
    run(plan, out)
    assert bits(out) == whole


def test_interrupted_it_stops_all_and_goes_on_to_the_same_bits(
    plan: Plan, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compare_module, "write_results", interrupt)  # when the first arm is done
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path, jobs=2)
    assert multiprocessing.active_children() == []
    assert not list(tmp_path.rglob("*.part"))
    assert len(finished_runs(tmp_path)) < 6
    run(plan, tmp_path)
    assert bits(tmp_path) == whole


@pytest.mark.slow
def test_any_number_of_jobs_gives_the_same_files(
    plan: Plan, whole: dict[str, Any], tmp_path: Path
) -> None:
    for jobs in (2, 3):
        run(plan, tmp_path / str(jobs), jobs=jobs)
        assert bits(tmp_path / str(jobs)) == whole


@pytest.mark.slow
def test_more_seeds_and_a_run_that_one_job_began_go_on_side_by_side(
    plan: Plan, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evostep.lab.storage import History

    append, left = History.append, [9]

    def stopping(self: History, record: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(History, "append", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(make_plan(Options(**{**OPTIONS, "seeds": 1})), tmp_path)
    run(plan, tmp_path, jobs=2)
    assert bits(tmp_path) == whole


@pytest.mark.slow
def test_what_a_run_raises_is_what_one_process_would_raise(
    plan: Plan, whole: dict[str, Any], tmp_path: Path
) -> None:
    run(plan, tmp_path)
    shutil.rmtree(tmp_path / "runs" / "mutation-seed1")
    for path in (tmp_path / "trunks").glob("*seed1/*.pt"):
        path.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"checkpoint .*seed1.* is corrupt .*: delete it") as one:
        run(plan, tmp_path)
    with pytest.raises(InputError) as two:
        run(plan, tmp_path, jobs=2)
    assert str(two.value) == str(one.value)
    assert multiprocessing.active_children() == []


def command(out: Path, jobs: int) -> subprocess.Popen[str]:
    """The command line, in a group of processes of its own, as from a terminal."""
    given = [
        f"--{k.replace('_', '-')}={json.dumps(v) if k == 'arms' else v}" for k, v in OPTIONS.items()
    ]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "evostep",
            "compare",
            *given,
            f"--jobs={jobs}",
            f"--out={out}",
            "-v",
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until_at_work(process: subprocess.Popen[str], out: Path) -> None:
    until = time.monotonic() + 240
    while not any(path.stat().st_size for path in out.rglob(NAME)):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)


def wait_until_all_are_dead(group: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("there are processes left")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_on_the_command_line_is_one_line_and_loses_nothing(
    number: signal.Signals, plan: Plan, whole: dict[str, Any], tmp_path: Path
) -> None:
    process = command(tmp_path, jobs=2)
    wait_until_at_work(process, tmp_path)
    os.killpg(process.pid, number)  # as a terminal does: all hear it
    _, told = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), told
    assert told.splitlines()[-1] == (
        "evostep: stopped; the same command goes on from the last checkpoint"
    )
    assert "Traceback" not in told
    wait_until_all_are_dead(process.pid)
    assert not list(tmp_path.rglob("*.part"))
    run(plan, tmp_path, jobs=3)
    assert bits(tmp_path) == whole


@pytest.mark.slow
def test_killed_itself_its_processes_die_and_the_same_command_goes_on(
    plan: Plan, whole: dict[str, Any], tmp_path: Path
) -> None:
    process = command(tmp_path, jobs=2)
    wait_until_at_work(process, tmp_path)
    process.kill()
    process.communicate(timeout=60)
    run(plan, tmp_path)  # at once: who is still at work is waited for
    assert bits(tmp_path) == whole
    wait_until_all_are_dead(process.pid)
