"""Kill runs again and again, and see that nothing is lost: the same command, the same bits.

Each trial starts a command of `ARMS` in a new directory, in a process forked from a warm one, and
kills it with SIGKILL: at a random moment, or exactly at one of its writes (half of it is on the
disk then), syncs, renames, deletions and new folders; every other one again as it goes on. Then
the same command runs to its end, and weights, history, results, checkpoints and the names of all
files are compared with those of a run that was never stopped. `--full` makes the disk full there
instead, or read-only in every other such trial: one line that says so, and the same bits once it
can be written to again.

    python benchmarks/soak.py --kills 200 --out results/soak.json
    python benchmarks/soak.py --kills 20 --arms polish-head,compare-esgd

Runs where there is `os.fork`. The exit status is 1 where anything differed.
"""

from __future__ import annotations

import argparse
import errno
import functools
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = {
    "model": "mlp",
    "train-size": 100,
    "test-size": 50,
    "fitness-size": 40,
    "epochs": 3,
    "evolve-from": 1,
    "generations": 2,
    "population": 4,
    "batch": 32,
    "lr": 0.1,
    "threads": 1,
}
POLISH = (
    *("--init-from=weights/{model}.safetensors", "--metric=macro-f1", "--folds=3", "--threads=1"),
    *("--part=test", "--test-size=60"),
)


@dataclass(frozen=True)
class Arm:
    """A command to be killed.

    Attributes:
        command: without ``--out``.
        page: whether it draws its figures, which takes seconds.
        timed: whether its budget is a time, so that another run has another number.
    """

    command: tuple[str, ...]
    page: bool = False
    timed: bool = False


def compare(arms: str, command: str = "compare", **changes: object) -> tuple[str, ...]:
    """Return the command of a comparison of a second."""
    own = {name.replace("_", "-"): value for name, value in changes.items()}
    given = {**TINY, **({"seeds": 1} if command == "compare" else {}), **own}
    kind = "arms" if command == "compare" else "arm"
    return command, f"--{kind}={arms}", *(f"--{name}={value}" for name, value in given.items())


def polish(space: str, budget: object, model: str = "mlp", *more: str) -> tuple[str, ...]:
    """Return the command of a polishing of a second."""
    given = (text.format(model=model) for text in POLISH)
    return "polish", f"--model={model}", f"--space={space}", f"--budget={budget}", *given, *more


HELD = "--confirm=holdout"
ARMS = {
    "compare-es": Arm(compare("sgd-all,mutation,openai-es,snes-head", augment="shift")),
    "compare-more": Arm(compare("openai-es-adam,low-rank-es,guided-es,mutation-safe", seeds="3,")),
    "compare-norm": Arm(
        compare("snes-norm,random-search", model="small-cnn", evolve_from=0, epochs=2)
    ),
    "compare-soups": Arm(compare("uniform-soup,greedy-soup,soup-cmaes,soup-cycle,swa,ema")),
    "compare-esgd": Arm(compare("sgd-all-cosine,esgd,sam,gradient-noise", augment="shift")),
    "compare-jobs": Arm((*compare("sgd,mutation,esgd", seeds=2), "--jobs=2")),
    "train": Arm(compare("openai-es", "train", accept_size=20)),
    "train-page": Arm(compare("sgd", "train", epochs=2), page=True),
    "polish-decision": Arm(polish("decision", 3000)),
    "polish-head": Arm(polish("head", 40_000, "mlp", HELD)),
    "polish-auto": Arm(polish("auto", 62_000, "small-cnn", HELD)),
    "polish-time": Arm(polish("head", "1s", "mlp", HELD), timed=True),
}


# In the process that is killed


class Events:
    """Counts what happens to files, and lets one of it be the last, or fail.

    Args:
        at: which (from 0) is the last that happens; None: all happen.
        error: fail with this number instead, there and ever after: ENOSPC for want of room (what
            makes room works then), EROFS on a disk that has become read-only.
    """

    def __init__(self, at: int | None = None, *, error: int | None = None) -> None:
        self.seen: list[str] = []
        self._at, self._error = at, error

    def happen(self, kind: str, half: Callable[[], object] = lambda: None) -> None:
        """Note an event; where it is the one, do half of it and die."""
        self.seen.append(kind)
        if self._at is None or len(self.seen) <= self._at:
            return
        self.fail()
        half()
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self) -> None:
        """Raise what a disk does to those who change something, if it does so by now."""
        if self._error and self._at is not None and len(self.seen) > self._at:
            raise OSError(self._error, os.strerror(self._error))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this process, until the context is left or it has died."""
        opened, happen, read_only = io.open, self.happen, self._error == errno.EROFS
        descriptor = os.open

        def open_descriptor(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if read_only and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.fail()
            return descriptor(path, flags, *args, **kwargs)

        class Raw(io.FileIO):
            def write(self, content: Any) -> int:
                some = memoryview(content).cast("B")
                happen("write", lambda: io.FileIO.write(self, some[: len(some) // 2]))
                return io.FileIO.write(self, some) or 0

        def watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode not in ("w", "wb", "a", "ab"):
                return opened(file, mode, *args, **kwargs)
            if read_only:
                self.fail()
            binary = io.BufferedWriter(Raw(file, mode.rstrip("b")))
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding="utf-8")

        names = ("fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir")
        before = {name: getattr(os, name) for name in names}
        for name, function in before.items():
            makes_room = name in ("unlink", "remove", "rmdir")
            if not (self._error == errno.ENOSPC and makes_room):
                setattr(os, name, self._watched(name, function))
        io.open = watched  # type: ignore[assignment]
        os.open = open_descriptor  # type: ignore[assignment]
        try:
            yield
        finally:
            io.open, os.open = opened, descriptor
            for name, function in before.items():
                setattr(os, name, function)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        kind = {"replace": "rename", "remove": "unlink"}.get(name, name)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.happen(kind)
            return function(*args, **kwargs)

        return call


def start(arguments: tuple[str, ...], log: Path, events: Events, *, page: bool) -> int:
    """Return the id of a process that runs a command, and tells what it says in a file."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        # the streams of the one before, a test's perhaps, are not to be written to
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        _draw(page)
        with events.watching():
            code = run(arguments)
    finally:
        os._exit(code)


def run(arguments: tuple[str, ...]) -> int:
    """Run a command here, and return its exit code."""
    from evostep.cli import main

    try:
        return main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)


def _draw(pages: bool) -> None:
    """Let comparisons write their pages, or not."""
    from evostep.lab.comparison import compare as module
    from evostep.lab.report.page import ReportPaths, write_report

    def write_nothing(directory: Path) -> ReportPaths:
        return ReportPaths(directory / "table.md", directory / "report.html", ())

    module.write_report = write_report if pages else write_nothing  # type: ignore[attr-defined]


# What is left


def same(value: Any) -> Any:
    """Return JSON without what no two runs share: times, and where and when it was run."""
    apart = ("seconds", "environment", "command")
    if isinstance(value, dict):
        return {key: same(item) for key, item in value.items() if key not in apart}
    return [same(item) for item in value] if isinstance(value, list) else value


def bits(directory: Path) -> dict[str, Any]:
    """Return what two runs must have in common: each file's content, as far as it is no time."""
    return {str(path.relative_to(directory)): _content(path) for path in sorted(_files(directory))}


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return same(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [same(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".pt":
        import torch

        from evostep.lab.checkpoints import checksum, load_checkpoint

        state = load_checkpoint(path, torch.device("cpu"))
        state.get("counters", {}).pop("seconds", None)
        return checksum(state)
    if path.suffix == ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None  # pages, tables and pictures tell times


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the names of the files that differ, are missing, or are too many."""
    nothing = object()
    names = sorted(found.keys() | wanted.keys())
    return [name for name in names if found.get(name, nothing) != wanted.get(name, nothing)]


# Trials


class Soak:
    """Runs commands whole and killed in a folder of its own, which is where this process stands.

    Args:
        folder: empty.
        arms: by name.
        seed: of the moments.
    """

    def __init__(self, folder: Path, arms: Mapping[str, Arm], seed: int = 0) -> None:
        self._folder, self._arms = folder, arms
        self._random = random.Random(seed)
        self.events: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self._whole: dict[str, dict[str, Any]] = {}
        self._left: dict[str, list[int]] = {}
        self.kills: Counter[str] = Counter()
        self.by_arm: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.trials = 0

    def prepare(self) -> None:
        """Run each command whole; it is this process that does, and so is warm."""
        _prepare()
        for name, arm in self._arms.items():
            out, events, began = self._folder / name / "whole", Events(), time.perf_counter()
            _draw(arm.page)
            out.parent.mkdir()  # as it is in every trial, or there were events that no trial has
            with redirect_stdout(io.StringIO()) as told, redirect_stderr(told), events.watching():
                code = run((*arm.command, f"--out={out}"))
            if code:
                raise RuntimeError(f"{name}: exit status {code}: {told.getvalue()[-500:]}")
            self.seconds[name] = time.perf_counter() - began
            self.events[name], self._whole[name] = events.seen, bits(out)

    def _start(self, name: str, out: str, events: Events) -> int:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        arm = self._arms[name]
        command = (*arm.command, f"--out={folder / out}")
        return start(command, folder / f"{out}.log", events, page=arm.page)

    def _finish(self, name: str, out: str) -> None:
        """Run a command to its end.

        Raises:
            RuntimeError: it failed.
        """
        _, status = os.waitpid(self._start(name, out, Events()), 0)
        if status:
            told = (self._folder / name / f"{out}.log").read_text()
            raise RuntimeError(f"exit status {os.waitstatus_to_exitcode(status)}: {told[-500:]}")

    def _kill(self, name: str, out: str, event: int | None) -> str:
        """Kill a command as it runs; return where, or nothing where it was done before."""
        process = self._start(name, out, Events(event))
        if event is None:
            time.sleep(self._random.uniform(0, self.seconds[name]))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            return ""
        return "random moment" if event is None else self.events[name][event]

    def trial(self, name: str, kind: str | None = None) -> None:
        """Kill a command once or twice, let it end, and compare.

        Args:
            name: of the arm.
            kind: of the event at which it is killed; None: at one of any kind, or a random moment.
        """
        out = f"trial-{self.trials}"
        self.trials += 1
        event = None if kind == "random moment" else self._next_event(name, kind)
        where = [self._kill(name, out, event)]
        while where[-1] and self._random.random() < 0.5:
            where.append(self._kill(name, out, None))
        self._note(name, where)
        self._compare(name, out, {"killed at": [*where, event]})

    def fill(self, name: str, error: int = errno.ENOSPC) -> None:
        """Let the disk be full from an event on, see that it is told, and compare what follows.

        Args:
            name: of the arm.
            error: what happens to who writes: EROFS where the disk becomes read-only.
        """
        out = f"trial-{self.trials}"
        self.trials += 1
        events = self.events[name]
        seen = [kind for kind in events if error != errno.ENOSPC or kind not in _ROOM]
        event = self._random.randrange(len(seen))
        _, status = os.waitpid(self._start(name, out, Events(event, error=error)), 0)
        told = (self._folder / name / f"{out}.log").read_text().splitlines()
        errors = [line for line in told if line.startswith("evostep: error: ")]
        code = os.waitstatus_to_exitcode(status)
        if code == 0 and self._arms[name].timed:  # with less to write than before, it was done
            self._compare(name, out, {"never full": event})
            return
        self._note(name, [_DISKS[error]])
        if code not in (1, 2) or len(errors) != 1 or any("Traceback" in line for line in told):
            found = {"code": code, "told": told[-5:]}
            self.failures.append({"arm": name, _DISKS[error]: event, **found})
        self._compare(name, out, {_DISKS[error]: event})

    @property
    def killed(self) -> int:
        """How many processes were killed so far."""
        return sum(self.kills.values()) - sum(self.kills[kind] for kind in _DISKS.values())

    def facts(self, began: float) -> dict[str, Any]:
        """Return what came of it so far, as plain data."""
        import torch

        from evostep.lab.comparison.environment import describe_environment

        return {
            "kills": self.killed,
            "by_kind": {k: n for k, n in self.kills.items() if k not in _DISKS.values()},
            "full_disks": self.kills["full disk"],
            "read_only_disks": self.kills["read-only disk"],
            "trials": self.trials,
            "by_arm": dict(self.by_arm),
            "events": {name: dict(Counter(events)) for name, events in self.events.items()},
            "failures": self.failures,
            "seconds": round(time.perf_counter() - began, 1),
            "environment": describe_environment(torch.device("cpu")),
        }

    def _next_event(self, name: str, kind: str | None) -> int:
        """Return an event that was not tried before, as long as there is one."""
        left = self._left.setdefault(name, [])
        if not left:
            left.extend(range(len(self.events[name])))
            self._random.shuffle(left)
        place = next((i for i in left if kind in (None, self.events[name][i])), left[-1])
        left.remove(place)
        return place

    def _note(self, name: str, where: list[str]) -> None:
        for one in filter(None, where):
            self.kills[one] += 1
            self.by_arm[name] += 1

    def _compare(self, name: str, out: str, how: dict[str, Any]) -> None:
        place = self._folder / name / out
        number = _number(place)
        try:
            self._finish(name, out)
            found = bits(place)
            differ = differences(found, self._wanted(name, found, number))
        except Exception as error:
            differ = [f"{type(error).__name__}: {error}"]
        if differ:
            self.failures.append({"arm": name, **how, "differs": differ})
            shutil.copytree(place, self._folder / "failed" / out, dirs_exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)

    def _wanted(self, name: str, found: Mapping[str, Any], number: int | None) -> dict[str, Any]:
        """Return what a run that was never stopped has; with its budget as a number, if it is one.

        Args:
            name: of the arm.
            found: what this one has.
            number: into which the killed run had turned a time, as far as it had come.
        """
        if not self._arms[name].timed:
            return self._whole[name]
        results = found["results.json"]
        budget = results["settings"]["budget"]
        assert number in (None, budget), f"the number was {number}, and is {budget}"
        key = f"{name}-{budget}"
        if key not in self._whole:
            given = [
                f"--budget={budget}" if a.startswith("--budget=") else a
                for a in self._arms[name].command
            ]
            self._arms = {**self._arms, key: Arm(tuple(given))}
            self._finish(key, "whole")
            self._whole[key] = bits(self._folder / key / "whole")
        wanted = dict(self._whole[key])
        asked = {
            "budget": {**wanted["results.json"]["budget"], "asked": results["budget"]["asked"]}
        }
        arguments = {**wanted["results.json"]["arguments"], "budget": results["budget"]["asked"]}
        wanted["results.json"] = {**wanted["results.json"], **asked, "arguments": arguments}
        return wanted


_ROOM = ("unlink", "rmdir")
_DISKS = {errno.ENOSPC: "full disk", errno.EROFS: "read-only disk"}


def _number(out: Path) -> int | None:
    """Return the number that a killed run had turned its time into, None where it had not."""
    path = out / ".evostep-run" / "budget.pt"
    if not path.is_file():
        return None
    import torch

    return int(torch.load(path, weights_only=True)["tensors"]["number"])


def _prepare() -> None:
    """Save the networks that are polished, read the data once, and draw no figures."""
    import sklearn.datasets
    import torch

    import evostep.lab.comparison.compare
    import evostep.lab.polish.run  # noqa: F401  # what is imported here is there in every fork
    from evostep.lab.models import build_model
    from evostep.lab.weights import save_weights

    _draw(False)
    torch.set_num_threads(1)
    sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
    sklearn.datasets.load_digits()
    for name in ("mlp", "small-cnn"):
        model = build_model(name, channels=1, classes=10, image_size=8, seed=0)
        save_weights(Path("weights") / f"{name}.safetensors", model)


def _write(path: Path | None, facts: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1) + "\n")


def main() -> int:
    """Run the trials, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--minutes", type=float, default=40, help="after which no trial begins")
    parser.add_argument("--full", type=int, default=0, help="so many trials with a disk that fails")
    parser.add_argument("--arms", help="names, separated by commas (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="JSON of what came of it")
    given = parser.parse_args()
    names = given.arms.split(",") if given.arms else list(ARMS)
    began, at = time.perf_counter(), Path.cwd()
    given.out = given.out and given.out.absolute()
    folder = Path(tempfile.mkdtemp(prefix="evostep-soak-"))
    os.chdir(folder)
    soak = Soak(folder, {name: ARMS[name] for name in names}, given.seed)
    soak.prepare()
    told = ", ".join(f"{name} {len(e)} events" for name, e in soak.events.items())
    print(f"{time.perf_counter() - began:.0f} s to prepare: {told}", flush=True)

    while soak.killed < given.kills and time.perf_counter() - began < 60 * given.minutes:
        name = names[soak.trials % len(names)]
        disks = sum(soak.kills[kind] for kind in _DISKS.values())
        if soak.trials % 10 == 9 and disks < given.full:
            soak.fill(name, list(_DISKS)[disks % 2])
        else:  # in turns: an event, a random moment; each arm as often as the others
            by_event = soak.trials // len(names) % 2 == 0
            soak.trial(name, None if by_event else "random moment")
        if soak.trials % 10 == 0:
            print(f"{soak.killed} kills, {len(soak.failures)} failures", flush=True)
            _write(given.out, soak.facts(began))
    os.chdir(at)
    facts = soak.facts(began)
    _write(given.out, facts)
    print(
        json.dumps(
            {
                key: facts[key]
                for key in ("kills", "full_disks", "read_only_disks", "failures", "seconds")
            }
        )
    )
    if not soak.failures:
        shutil.rmtree(folder)
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
