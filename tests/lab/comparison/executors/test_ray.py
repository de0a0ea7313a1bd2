"""Runs as tasks of Ray: the same results as here, whatever becomes of workers."""

import json
import os
import socket
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
from evostep.lab.comparison.executors import Execution
from evostep.lab.comparison.executors import ray as module
from evostep.lab.comparison.executors.ray import check_ray
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.options import Options
from evostep.lab.report.page import ReportPaths
from evostep.lab.storage import read_json

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
    "arms": "sgd,mutation",
    "metric": "metric_that_kills_workers:accuracy",
    "higher_is_better": True,
}
# A metric of the user's, which kills the worker of a run once, at its tenth call there
METRIC = """
import os, signal, sys
from pathlib import Path

calls = 0

def accuracy(outputs, targets):
    global calls
    if "default_worker" in sys.argv[0]:  # as Ray calls its own
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


def test_where_ray_is_missing_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError) as caught:
        check_ray(Execution(executor="ray"))
    assert str(caught.value) == (
        "--executor ray needs the package ray, which is not installed: pip install 'evostep[ray]'"
    )


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "metric_that_kills_workers.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    paths = ReportPaths(Path("table.md"), Path("report.html"), ())
    monkeypatch.setattr(compare_module, "write_report", lambda _: paths)
    return make_plan(Options(**OPTIONS))


def timeless(value: Any) -> Any:
    apart = ("seconds", "date", "command", "commit")
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in apart}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def bits(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content: Any = None
        if path.suffix == ".json":
            content = timeless(read_json(path))
        elif path.suffix == ".safetensors":
            content = path.read_bytes()
        found[str(path.relative_to(directory))] = content
    return found


def command(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own: Ray leaves much behind in the one that uses it."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "evostep",
            "compare",
            *given,
            f"--out={out}",
            "--executor=ray",
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray starts a dozen processes
def test_two_workers_give_what_one_process_gives_and_a_lost_one_is_retried(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    compare(plan, tmp_path / "local", Console(quiet=True))
    monkeypatch.setenv("KILL_ONCE", str(tmp_path / "killed"))
    done = command(tmp_path / "ray", "--jobs=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    found, wanted = bits(tmp_path / "ray"), bits(tmp_path / "local")
    pages = {
        name
        for name in found
        if Path(name).suffix not in (".json", ".safetensors", ".pt", ".jsonl")
    }
    assert {name: content for name, content in found.items() if name not in pages} == wanted
    assert "results.json" in found
    histories = [
        [
            timeless(json.loads(line))
            for line in (tmp_path / name / "history.jsonl").read_text().splitlines()
        ]
        for name in ("ray", "local")
    ]
    assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray starts a dozen processes
def test_an_address_without_a_cluster_is_one_line_in_time_and_nothing_is_written(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(module, "CONNECT_SECONDS", 20)
    with socket.socket() as nobody, socket.socket() as silent:
        for one in (nobody, silent):
            one.bind(("127.0.0.1", 0))
        silent.listen()  # and never answers
        ports = [one.getsockname()[1] for one in (nobody, silent)]
        for address in ("nonsense", *(f"127.0.0.1:{port}" for port in ports)):
            began = time.monotonic()
            with pytest.raises(
                InputError, match=f"--address {address} .*leave --address out"
            ) as no:
                compare(
                    plan,
                    tmp_path / "out",
                    Console(quiet=True),
                    how=Execution(executor="ray", address=address),
                )
            assert "\n" not in str(no.value)
            assert time.monotonic() - began < 40
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray starts a dozen processes
@pytest.mark.usefixtures("plan")
def test_more_than_this_machine_has_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = command(tmp_path / "out", "--jobs=1", "--num-gpus=100", "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "evostep: error: this machine has less than 1 CPU, 100 GPU, which a run asks for: "
        "ask for less\n"
    )
