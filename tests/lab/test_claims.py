"""Directories that are ours: one process at a time, and what is written goes nowhere else."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from evostep.errors import DiskError, InputError
from evostep.lab.claims import claimed, keep_to
from evostep.lab.storage import History, write_json

if not hasattr(os, "fork"):
    pytest.skip("there is no fork", allow_module_level=True)
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def hold(directory: Path, held: Any) -> None:
    """Claim a directory, fork a child that lives on, and wait to be killed."""
    with claimed(directory):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        held.send(child)
        time.sleep(60)


def test_the_lock_dies_with_its_owner_and_not_with_its_children(tmp_path: Path) -> None:
    ours, theirs = FORK.Pipe()
    owner = FORK.Process(target=hold, args=(tmp_path, theirs))
    owner.start()
    child = ours.recv()
    try:
        with pytest.raises(InputError, match=f"another evostep is at work in {tmp_path}: wait"):
            claimed(tmp_path).__enter__()
        assert owner.pid is not None
        os.kill(owner.pid, signal.SIGKILL)
        owner.join()
        os.kill(child, 0)  # it lives
        with claimed(tmp_path):
            write_json(tmp_path / "x.json", 1)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("instead", ["nothing", "another directory", "a file"])
def test_what_is_not_our_directory_any_more_is_not_written_to(instead: str, tmp_path: Path) -> None:
    out, away = tmp_path / "out", tmp_path / "away"
    history = History(out / "h.jsonl")
    with claimed(out):
        write_json(out / "x.json", 1)
        out.rename(away)
        if instead == "another directory":
            out.mkdir()
        elif instead == "a file":
            out.write_text("")
        for write in (lambda: write_json(out / "runs" / "y.json", 2), lambda: history.append({})):
            with pytest.raises(DiskError, match=r"not the directory any more .*: bring it back"):
                write()
        write_json(tmp_path / "elsewhere.json", 3)
        if instead == "another directory":
            assert list(out.iterdir()) == []
            out.rmdir()
        elif instead == "a file":
            out.unlink()
        assert not out.exists()
        away.rename(out)
        history.append({})
        write_json(out / "runs" / "y.json", 2)
    assert sorted(path.name for path in out.iterdir()) == ["h.jsonl", "runs", "x.json"]


def test_a_directory_is_free_again_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with claimed(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with claimed(tmp_path):
        pass
    write_json(tmp_path / "x.json", 1)


def test_who_is_about_to_die_is_waited_for(tmp_path: Path) -> None:
    ours, theirs = FORK.Pipe()
    owner = FORK.Process(target=hold, args=(tmp_path, theirs))
    owner.start()
    child = ours.recv()
    try:
        assert owner.pid is not None
        threading.Timer(0.3, os.kill, (owner.pid, signal.SIGKILL)).start()
        began = time.monotonic()
        with claimed(tmp_path, patience=30):
            assert time.monotonic() - began > 0.2
            with pytest.raises(InputError, match="another evostep is at work"):
                claimed(tmp_path, patience=0.2).__enter__()
    finally:
        owner.join()
        os.kill(child, signal.SIGKILL)


def take_part(directory: Path, answers: Any) -> None:
    """As a process that the one which has claimed the directory has started."""
    keep_to(directory)
    for _ in range(3):
        try:
            with claimed(directory / "runs"):
                write_json(directory / "runs" / "x.json", 1)
            answers.send("written")
        except DiskError as error:
            answers.send(str(error))
        answers.recv()


def test_a_process_that_takes_part_keeps_to_the_directory(tmp_path: Path) -> None:
    out, away = tmp_path / "out", tmp_path / "away"
    ours, theirs = FORK.Pipe()
    with claimed(out):
        process = FORK.Process(target=take_part, args=(out, theirs), daemon=True)
        process.start()
        assert ours.recv() == "written"
        out.rename(away)
        ours.send("go on")
        assert "not the directory any more in which this run began" in ours.recv()
        assert not out.exists()
        away.rename(out)
        ours.send("go on")
        assert ours.recv() == "written"
        ours.send("end")
        process.join()
    with pytest.raises(InputError, match="nowhere is not here"):
        keep_to(tmp_path / "nowhere")
