"""Commands under torchrun: the same files as one process writes, and errors in one line."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evostep.cli import main
from evostep.cli.ranks import _packed, _unpack, check_arms, world
from evostep.errors import InputError
from evostep.lab.comparison.executors import Execution

OPTIONS = """
--data digits --model mlp --train-size 100 --test-size 50 --fitness-size 40 --epochs 3 --lr 0.1
--evolve-from 1 --generations 2 --population 6 --threads 1
"""
TRAIN = ["train", "--arm", "openai-es", *OPTIONS.split()]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(arguments: list[str], module: str = "evostep", **environment: str) -> Any:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "EVOSTEP_TIMEOUT": "100", **environment},
    )


def start_ranks(arguments: list[str], ranks: int = 2) -> list[Any]:
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [start(arguments, RANK=str(rank), **common) for rank in range(ranks)]


def finish(processes: list[Any], seconds: float = 250) -> list[tuple[int, str, str]]:
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]


def outcome(out: Path) -> Any:
    """What a run wrote, but for times and what tells of the machine."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    (run,) = json.loads((out / "results.json").read_text())["runs"]
    (weights,) = out.glob("runs/*/model.safetensors")
    for one in (*lines, run):
        del one["seconds"]
    del run["environment"]
    return lines, run, hashlib.sha256(weights.read_bytes()).hexdigest()


def test_two_ranks_write_what_one_process_does_and_the_first_alone_speaks(tmp_path: Path) -> None:
    processes = [start([*TRAIN, "--out", str(tmp_path / "one")])]
    processes += start_ranks([*TRAIN, "--out", str(tmp_path / "two")])
    (alone, first, second) = finish(processes)
    assert [alone[0], first[0], second[0]] == [0, 0, 0], (first, second)
    assert second[1:] == ("", "")
    assert first[1].replace("/two/", "/one/") == alone[1]
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") <= 1
    return err.strip()


@pytest.mark.parametrize(
    ("rank", "size"), [("", "2"), ("2", "2"), ("-1", "2"), ("one", "2"), ("0", "many")]
)
def test_an_environment_that_makes_no_sense_is_told(
    rank: str, size: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    told = refused(["train", "--out", "nowhere"], capsys)
    assert f"the environment has RANK={rank} and WORLD_SIZE={size}: start several" in told
    assert not Path("nowhere").exists()


def test_one_process_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert world() == (0, 1)


def test_other_commands_are_for_one_process_and_other_ranks_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    told = refused(["doctor"], capsys)
    assert told.endswith(
        "evostep doctor runs in one process, and WORLD_SIZE is 2: start it without torchrun (over "
        "ranks go train and compare)"
    )
    monkeypatch.setenv("RANK", "1")
    assert refused(["doctor"], capsys) == ""
    assert refused(["trian"], capsys) == ""


def test_a_port_in_use_and_ranks_that_never_come_are_one_line(tmp_path: Path) -> None:
    """And nothing is written."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        common = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        arguments = [*TRAIN, "--out", str(tmp_path / "out")]
        said = finish(
            [
                start(arguments, MASTER_PORT=port, **common),
                start(arguments, MASTER_PORT=str(free_port()), EVOSTEP_TIMEOUT="2", **common),
                start(arguments, RANK="0", WORLD_SIZE="2"),
                start(arguments, MASTER_PORT="1", EVOSTEP_TIMEOUT="0", **common),
            ]
        )
    assert [(code, out, err.count("\n")) for code, out, err in said] == [(2, "", 1)] * 4, said
    meet = "evostep: error: the 2 ranks do not meet at "
    lines = [err.strip() for _, _, err in said]
    assert lines[0] == f"{meet}127.0.0.1:{port}, the port is in use: choose another (torchrun " + (
        "--master-port)"
    )
    assert (
        "they have not all come within 2 s, or it cannot be reached: start all of them, or"
        in (lines[1])
    )
    assert lines[2].startswith(f"{meet}?:?, ValueError: ")
    assert lines[3].endswith("EVOSTEP_TIMEOUT must be seconds above 0, got '0'")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_handed_out_without_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "a" / "runs").mkdir(parents=True)
    (tmp_path / "a" / "runs" / "last.pt").write_bytes(b"weights")
    (tmp_path / "a" / "page.html").write_text("page")
    _unpack(_packed(tmp_path / "a"), tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").rglob("*") if p.is_file()] == ["last.pt"]
    assert (tmp_path / "b" / "runs" / "last.pt").read_bytes() == b"weights"
    _unpack(_packed(tmp_path / "missing"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def workers_of(process: Any) -> list[int]:
    """The processes that torchrun has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process.pid:
            found.append(int(stat.parent.name))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_rank_that_is_killed_at_random_changes_no_bit(tmp_path: Path) -> None:
    """torchrun starts all ranks again, and they go on from the last checkpoint."""
    train = [*TRAIN, "--epochs", "30", "--generations", "6"]
    whole = tmp_path / "whole"
    assert [code for code, *_ in finish([start([*train, "--out", str(whole)])])] == [0]
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    killed = tmp_path / "killed"
    run = ["--nproc-per-node", "2", "--max-restarts", "20", "--master-port", str(free_port())]
    process = start([*run, "-m", "evostep", *train, "--out", str(killed)], "torch.distributed.run")
    kills = 0
    try:
        while process.poll() is None and kills < 2:
            while process.poll() is None and not list(killed.glob("runs/*/checkpoint.pt")):
                time.sleep(0.05)
            time.sleep(draw.uniform(0.0, 3.0))
            workers = workers_of(process)
            if process.poll() is None and workers:
                os.kill(draw.choice(workers), signal.SIGKILL)
                kills += 1
                time.sleep(5)
        out, err = process.communicate(timeout=600)
    finally:
        process.terminate()  # it ends those that it has started
        process.wait(60)
    assert process.returncode == 0, (seed, out, err)
    assert kills, "it was over too soon"
    assert outcome(killed) == outcome(whole), seed


def test_what_does_not_go_over_ranks_is_refused_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    population = SimpleNamespace(label="esgd", procedure="population")
    apart = [Execution(jobs=2).side_by_side, Execution("ray").side_by_side]
    assert apart == [True, True]
    assert not Execution(jobs=1).side_by_side
    check_arms([population], apart=True)  # in one process
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="the individuals of a population do not go over ranks"):
        check_arms([population])
    with pytest.raises(InputError, match="--jobs and --executor do runs in other processes"):
        check_arms([], apart=True)
