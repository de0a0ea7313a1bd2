"""The command line, as a user meets it: what it prints, what it writes, and how it ends."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from evostep import __version__
from evostep.cli import main
from evostep.cli.options import make_options
from evostep.cli.parser import parse
from evostep.lab import storage
from evostep.lab.comparison import compare as compare_module
from evostep.lab.report.page import ReportPaths
from evostep.lab.storage import read_json

TINY: dict[str, object] = {
    "model": "mlp",
    "train-size": 100,
    "test-size": 50,
    "fitness-size": 40,
    "epochs": 3,
    "evolve-from": 2,
    "generations": 1,
    "population": 4,
    "lr": 0.1,
    "seeds": 1,
    "threads": 1,
}
MODULE = """
import os
import signal
import time

import torch

class Undirected:
    higher_is_better = None
    def update(self, outputs, targets): pass
    def compute(self): return 0.0
    def reset(self): pass

def large(outputs):
    return float(outputs.abs().max()) > 1000

def fragile(outputs, targets):
    if large(outputs):
        raise ValueError("outputs too large\\nby far")
    return (outputs.argmax(1) == targets).double()

def interrupted(outputs, targets):
    if large(outputs):
        raise KeyboardInterrupt
    return (outputs.argmax(1) == targets).double()

def terminated(outputs, targets):
    if large(outputs):
        os.kill(os.getpid(), signal.SIGTERM)
    return (outputs.argmax(1) == targets).double()

def slow(outputs, targets):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    return (outputs.argmax(1) == targets).double()

number = 3
"""


def tiny(**changes: object) -> list[str]:
    """Options of a comparison of a second."""
    values = {**TINY, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, digits_read_once: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own to be in, with a module to import from."""
    (tmp_path / "module_of_cli.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "module_of_cli", raising=False)
    return tmp_path


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and are tested by themselves."""

    def no_report(directory: Path) -> ReportPaths:
        table = directory / "table.md"
        table.write_text("the table\n")
        return ReportPaths(table, directory / "report.html", ())

    monkeypatch.setattr(compare_module, "write_report", no_report)


def exit_code(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "environment")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def history(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, bytes]:
    found = sorted((directory / "runs").glob("*/model.safetensors"))
    return {path.parent.name: path.read_bytes() for path in found}


# Bad input

BAD: list[tuple[str, str, str]] = [
    # what is given, what the line must name, how it corrects
    ("--arms=sgdd", "sgdd", "did you mean sgd"),
    ("--arms=,", "--arms", "choose from sgd, sgd-all"),
    ("--arms=sgd,sgd", "'sgd'", "give each its own label"),
    ("--data=digit", "'digit'", "did you mean digits"),
    ("--data=nowhere.module:data", "nowhere.module", "correct the name"),
    ("--data=folder:/nowhere --image-size=8", "/nowhere", ": "),
    ("--data=cifar10 --data-dir=/nowhere", "/nowhere", "give --data-dir FOLDER"),
    ("--data=fashion-mnist --data-dir=/nowhere", "/nowhere", "give --data-dir FOLDER"),
    ("--data=fashion-mnist --data-dir=truncated", "truncated", "get the file again"),
    ("--data=cifar10 --data-dir=truncated", "truncated", ": "),
    ("--model=mpl", "'mpl'", "did you mean mlp"),
    ("--model=module_of_cli:number", "module_of_cli:number", "name a class or function"),
    ("--model=resnet18", "resnet18", "use mlp, small-cnn"),
    ("--pretrained", "mlp", "use --init-from FILE.safetensors"),
    ("--init-from=none.safetensors", "none.safetensors", "give --init-from"),
    ("--init-from=module_of_cli.py", "module_of_cli.py", "give a whole .safetensors"),
    ("--metric=acuracy", "acuracy", "did you mean accuracy"),
    ("--metric=f-beta", "'f-beta'", "write f-beta(2)"),
    ("--metric=recall-at-precision(2)", "recall-at-precision(2)", "must be in (0, 1], got 2"),
    ("--metric=cost", "'cost'", "Known: "),
    ("--metric=module_of_cli:none", "'none'", "Known: "),
    ("--metric=module_of_cli:number", "module_of_cli:number", "metric must be a name"),
    ("--metric=module_of_cli:Undirected", "Undirected", "pass --higher-is-better true or false"),
    ("--metric=torchmetrics:MeanMetric", "MeanMetric", "pass --higher-is-better true or false"),
    ("--metric=torchmetrics:F1Score", "torchmetrics:F1Score", "name a metric that is made"),
    ("--epoch=3", "--epoch=3", "did you mean --epochs"),
    ("--foo", "--foo", "--help lists"),
    ("--openai-es.sigm=3", "--openai-es.sigm=3", "did you mean --openai-es.sigma"),
    ("--epochs=many", "--epochs 'many'", "expected a whole number"),
    ("--epochs=2.5", "--epochs '2.5'", "expected a whole number"),
    ("--epochs=0", "--evolve-from", "lower it or raise --epochs"),
    ("--epochs=-1", "--epochs", "at least 0, got -1"),
    ("--evolve-from=4", "--evolve-from 4", "lower it or raise --epochs"),
    ("--evolve-from=3", "--evolve-from 3", "lower one of them, or raise --epochs"),
    ("--evolve-from=-1", "--evolve-from", "at least 0, got -1"),
    ("--every=0", "--every", "at least 1, got 0"),
    ("--generations=-1", "--generations", "at least 0, got -1"),
    ("--population=0", "'mutation'", "at least 1, got 0"),
    ("--population=0 --arms=openai-es", "'openai-es'", "at least 2, got 0"),
    ("--population=5", "got 5", "use 6, or antithetic=false"),
    ("--openai-es.population=5", "got 5", "use 6"),
    ("--population=four", "'four'", "expected a whole number"),
    ("--sigma=0", "sigma", "> 0, got 0"),
    ("--sigma=-0.1", "sigma", "> 0, got -0.1"),
    ("--sigma=nan", "'nan'", "expected a number"),
    ("--openai-es.sigma=0", "'openai-es': sigma", "> 0, got 0"),
    ("--openai-es.lr=0", "'openai-es': lr", "> 0, got 0"),
    ("--openai-es.shaping=rank", "--openai-es.shaping 'rank'", "centered-rank or z-score"),
    ("--mutation.noise=pink", "'mutation'", "normal or uniform"),
    ("--lr=0", "--lr", "> 0, got 0"),
    ("--lr=fast", "--lr 'fast'", "expected a number"),
    ("--momentum=1", "--momentum", "lie in [0, 1), got 1"),
    ("--weight-decay=-1", "--weight-decay", "at least 0, got -1"),
    ("--batch=1", "--batch", "at least 2, got 1"),
    ("--optimizer=lion", "--optimizer 'lion'", "expected sgd or adam or adamw"),
    ("--augment=mixup", "--augment 'mixup'", "expected none or shift or flip-shift"),
    ("--accept=maybe", "--accept 'maybe'", "expected improves or always or "),
    ("--equal-budget=maybe", "--equal-budget 'maybe'", "expected true or false"),
    ("--higher-is-better=maybe", "--higher-is-better 'maybe'", "expected true or false"),
    ("--space=hed", "'hed'", "head"),
    ("--train-size=5000", "5000", "give smaller sizes"),
    ("--fitness-size=5000", "5000", "give smaller sizes"),
    ("--accept-size=5000", "5000", "give smaller sizes"),
    ("--test-size=5000", "5000", "give smaller sizes"),
    ("--train-size=-5", "-5", "give 10 or more"),
    ("--fitness-size=5", "5", "give 10 or more"),
    ("--fitness-size=0", "--fitness-size is 0", "mutation, openai-es score on these"),
    ("--seeds=0", "--seeds '0'", "at least one"),
    ("--seeds=-1", "--seeds '-1'", "a range (100:108)"),
    ("--seeds=1,1", "--seeds '1,1'", "distinct seeds"),
    ("--seeds=12:10", "--seeds '12:10'", "at least one"),
    ("--seeds=1.5", "--seeds '1.5'", "a count (3)"),
    ("--seeds=some", "--seeds 'some'", "a count (3)"),
    ("--device=gpu", "--device gpu", "try auto or cpu"),
    ("--threads=0", "--threads", "at least 1, got 0"),
    ("--config=none.yaml", "none.yaml", "does not exist"),
    ("--config=list.yaml", "[1, 2]", "not a mapping of options"),
    ("--config=broken.yaml", "the configuration", "is not valid YAML: "),
    ("--config=unknown.yaml", "'epoch'", "did you mean --epochs"),
    ("--config=truncated", "truncated is no file", "give a YAML file"),
    ("--config=truncated/train.parquet", "parquet holds no text", "give a YAML file"),
    ("--config=self.yaml", "it refers to itself", "not valid YAML"),
    ("--config=", "--config names no file", "give --config FILE.yaml"),
    ("--accept=", "--accept ''", "expected improves or always"),
    ("--config=typed.yaml", "--lr 'fast'", "expected a number"),
    ("--config=arm.yaml", "'sgd'", "--lr must be a number, got 'fast'"),
    ("--config=null.yaml", "--epochs", "a whole number, got null"),
    ("--out=module_of_cli.py", "module_of_cli.py", "choose a directory"),
    ("--out=module_of_cli.py/out", "module_of_cli.py/out", "choose another"),
    ("--out=truncated", "truncated", "choose another"),
]
CONFIGS = {
    "list.yaml": "[1, 2]\n",
    "broken.yaml": "--epochs: [\n",
    "unknown.yaml": "epoch: 3\n",
    "self.yaml": "a: &a [*a]\n",
    "typed.yaml": "lr: fast\n",
    "arm.yaml": "arms: [{method: sgd, lr: fast}]\n",
    "null.yaml": "epochs: null\n",
}


@pytest.fixture
def bad_files(here: Path) -> None:
    for name, text in CONFIGS.items():
        (here / name).write_text(text)
    (here / "truncated").mkdir()
    (here / "truncated" / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03\x00\x00")
    (here / "truncated" / "train.parquet").write_bytes(b"PAR1\xff\xfe")
    (here / "truncated" / "test.parquet").write_bytes(b"PAR1")


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(("given", "named", "corrected"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_gets_one_line_and_leaves_no_directory(
    given: str, named: str, corrected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given_names = {part.split("=")[0].removeprefix("--") for part in given.split()}
    if "config" in given_names:
        given_names |= {"epochs", "lr"}  # the command line would win over the file
    options = tiny(**{name: None for name in given_names if name in TINY})
    out = [] if "--out" in given else ["--out=out"]
    before = sorted(here.rglob("*"))
    assert exit_code("compare", *options, *given.split(), *out) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("evostep: error: ")
    assert named in line
    assert corrected in line
    assert "class '" not in line
    assert sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "a command is missing: --help lists those there are"),
        (
            ["compere"],
            "unknown command 'compere': did you mean compare? Known: polish, evaluate, decide, ",
        ),
        (["compare", "--out"], "--out has no value"),
        (["polish", "--out=out", "--prior", "-1,2"], "--prior has no value: give one, as --prior="),
        (["compare", "--out=/proc/out", "--dry-run"], "(/proc may not be written to"),
        (["compare", f"--out={'o' * 300}", "--dry-run"], "cannot be used (File name too long)"),
        (["report", "o" * 300], "choose another path"),
        (["evaluate"], "what is to be evaluated? Give --model"),
        (["report"], "no directory: give the one"),
        (["report", "nowhere"], "no results.json in 'nowhere'"),
        (["train", *tiny(seeds=None), "--out=out", "--arm=sgdd"], "did you mean sgd"),
        (["train", *tiny(seeds=None), "--out=out", "--seed=-1"], "--seed must be at least 0"),
        (["train", *tiny(seeds=None), "--out=out", "--seeds=3"], "did you mean --seed"),
        (["train", *tiny(seeds=None), "--out=out", "--resume"], "out holds no run to resume"),
    ],
)
def test_other_commands_refuse_in_one_line_too(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("evostep: error: ")
    assert told in line
    assert captured.out == ""
    assert not Path("out").exists()


# Help

COMMANDS = ("compare", "train", "report")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, "--help") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "usage: " in captured.out
    words = {"compare": "--openai-es.sigma", "train": "--resume", "report": "directory"}
    assert words[command] in captured.out
    if command != "report":
        assert "%%" not in captured.out
    assert ("--dry-run" in captured.out) is (command == "compare")


def test_help_and_version_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"    {command} " in printed for command in COMMANDS)
    assert exit_code("--version") == 0
    assert __version__ in capsys.readouterr().out


# Configuration

YAML = """
lr: 1e-3
openai-es: {sigma: 0.3}
arms: [sgd, {method: mutation, label: small, sigma: 1e-3}, openai-es]
"""


@pytest.mark.parametrize("command", ["compare", "train"])
def test_the_printed_configuration_can_be_read_back(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "c.yaml").write_text(YAML if command == "compare" else "lr: 1e-3\narm: {method: sgd}\n")
    given = [command, "--out=out", "--config=c.yaml", "--momentum=0.5"]
    assert exit_code(*given, "--print_config") == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["momentum"] == 0.5
    (here / "again.yaml").write_text(printed)
    first, again = (
        dataclasses.replace(make_options(parse(arguments)[command]), given=frozenset())
        for arguments in (given, [command, "--config=again.yaml"])
    )
    assert again == first
    assert not (here / "out").exists()


# Running


@pytest.mark.usefixtures("one_figure")
def test_compare_from_end_to_end(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """And report, which builds the same again from what is there."""
    assert exit_code("compare", *tiny(seeds=2), "--out=deep/out") == 0
    captured = capsys.readouterr()
    classes, *progress = captured.err.splitlines()
    assert classes.startswith("10 classes: 0 178, ")
    assert all(line.startswith("[") for line in progress)
    out = here / "deep" / "out"
    printed = captured.out.splitlines()
    assert printed[0] == "Digits (8x8), mlp, 2 seeds; differences to sgd-all in points"
    assert max(map(len, printed)) <= 80
    assert printed[-2:] == ["table: deep/out/table.md", "page:  deep/out/report.html"]
    assert [line.split()[0] for line in printed[3:7]] == ["sgd", "sgd-all", "mutation", "openai-es"]
    assert captured.out.replace("\n", "").isprintable()  # no control characters in a pipe
    results = read_json(out / "results.json")
    assert [r["arm"] for r in results["runs"]] == ["sgd", "sgd-all", "mutation", "openai-es"] * 2
    page, table = (out / "report.html").read_text(), (out / "table.md").read_text()
    assert page.startswith("<!doctype html>") or page.lower().startswith("<!doctype html>")
    (out / "table.md").unlink()
    (out / "report.html").write_text("spoilt")
    before = timeless(read_json(out / "results.json"))
    assert exit_code("report", "deep/out") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == printed[-2:]
    assert (out / "table.md").read_text() == table
    assert (out / "report.html").read_text() == page
    assert timeless(read_json(out / "results.json")) == before


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    before = sorted(here.rglob("*"))
    assert exit_code("compare", *tiny(seeds="3,5"), "--out=out", "--dry-run") == 0
    printed = capsys.readouterr().out
    for told in (
        "  sgd: ",
        "  mutation: ",
        "  openai-es: ",
        "2 seeds: 3, 5",
        "in all: ",
        "MB on disk",
    ):
        assert told in printed
    assert sorted(here.rglob("*")) == before


@pytest.mark.usefixtures("without_report")
def test_train_runs_one_arm_and_resumes(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    given = ["train", *tiny(seeds=None), "--arm=mutation", "--seed=4"]
    assert exit_code(*given, "--out=out") == 0
    (result,) = read_json(here / "out" / "results.json")["runs"]
    assert (result["arm"], result["seed"]) == ("mutation", 4)
    before = weights(here / "out")
    for same in ([], ["--resume"]):
        capsys.readouterr()
        assert exit_code(*given, "--out=out", *same) == 0
        assert "1 finished run found in out: they are kept" in capsys.readouterr().err
        assert weights(here / "out") == before
    # the same run as that of a comparison
    options = tiny(seeds="4,", arms="mutation")
    assert exit_code("compare", *options, "--out=other") == 0
    assert weights(here / "other") == before


@pytest.mark.usefixtures("without_report")
def test_train_takes_an_arm_with_settings(here: Path) -> None:
    arm = "{method: mutation, label: mine, strategy: {sigma: 0.3}}"
    assert exit_code("train", *tiny(seeds=None), f"--arm={arm}", "--out=out") == 0
    results = read_json(here / "out" / "results.json")
    assert results["runs"][0]["arm"] == "mine"
    assert results["config"]["arms"][0]["strategy"]["sigma"] == 0.3


@pytest.mark.usefixtures("without_report")
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a member's scoring."""
    given = ["--metric=module_of_cli:interrupted", "--sigma=100", "--out=out"]
    assert exit_code("compare", *tiny(), *given) == 130
    captured = capsys.readouterr()
    *_, last = captured.err.splitlines()
    assert last == "evostep: stopped; the same command goes on from the last checkpoint"
    assert not list((here / "out").rglob("*.part"))
    finished = weights(here / "out")
    assert list(finished) == ["sgd-all-seed0", "sgd-seed0"]
    module = sys.modules["module_of_cli"]
    monkeypatch.setattr(module, "large", lambda outputs: False)
    assert exit_code("compare", *tiny(), *given) == 0
    assert exit_code("compare", *tiny(), *given[:-1], "--out=whole") == 0
    assert weights(here / "out") == weights(here / "whole")
    assert timeless(history(here / "out")) == timeless(history(here / "whole"))
    capsys.readouterr()
    planned = iter([False])  # planning calls a metric once
    monkeypatch.setattr(module, "large", lambda outputs: next(planned, True))
    train = ["train", *tiny(seeds=None), "--metric=module_of_cli:interrupted", "--out=t"]
    assert exit_code(*train) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("without_report")
def test_a_comparison_that_is_interrupted_at_any_line_goes_on_to_the_same_end(
    here: Path,
) -> None:
    """At forty lines of those that train, save and write results, evenly spaced."""
    files = tuple(str(Path(compare_module.__file__).parents[1] / part) for part in ("comp", "arms"))
    files += (storage.__file__,)
    line = [0, 0]  # at which to interrupt, and how many there have been

    def look(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "call":
            return look if frame.f_code.co_filename.startswith(files) else None
        line[1] += event == "line"
        if event == "line" and line[0] == line[1]:
            raise KeyboardInterrupt
        return look

    def run(out: str, at: int) -> int:
        line[:] = [at, 0]
        before = sys.gettrace()
        sys.settrace(look)
        try:
            return exit_code("compare", *tiny(), "--arms=sgd,openai-es", f"--out={out}")
        finally:
            sys.settrace(before)

    assert run("whole", 0) == 0
    lines = line[1]
    for k in range(1, lines, lines // 40):
        assert run("out", k) == 130, k
        assert run("out", 0) == 0, k
        assert weights(here / "out") == weights(here / "whole"), k
        assert timeless(history(here / "out")) == timeless(history(here / "whole")), k
        shutil.rmtree(here / "out")


@pytest.mark.usefixtures("without_report")
def test_sigterm_is_taken_as_ctrl_c_is_and_leaves_with_143(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    """Batch systems and containers send it before they kill."""
    given = ["--metric=module_of_cli:terminated", "--sigma=100", "--out=out"]
    assert exit_code("compare", *tiny(), *given) == 143
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "evostep: stopped; the same command goes on from the last checkpoint"
    assert not list((here / "out").rglob("*.part"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("without_report")
@pytest.mark.filterwarnings("default")
def test_members_that_fail_are_told_in_plain_lines(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    """All of them do here, since the mutations are a hundred times the weights."""
    given = ["--metric=module_of_cli:fragile", "--sigma=100", "--out=out", "--arms=sgd,mutation"]
    assert exit_code("compare", *tiny(equal_budget="false"), *given) == 0
    captured = capsys.readouterr()
    (warned,) = (line for line in captured.err.splitlines() if line.startswith("evostep: "))
    assert warned == (
        "evostep: warning: generation 0: the fitness failed for all 4 members, so the weights "
        "stay (ValueError: outputs too large by far)"
    )
    failed = [line for line in captured.err.splitlines() if "scorings failed" in line]
    assert len(failed) == 1
    assert "mutation seed 0 epoch 3: 4 scorings failed (ValueError: outputs too large" in failed[0]
    results = read_json(here / "out" / "results.json")
    assert {r["arm"]: r["failed"] for r in results["runs"]} == {"sgd": 0, "mutation": 4}
    assert weights(here / "out")["mutation-seed0"] == weights(here / "out")["sgd-seed0"]


@pytest.mark.usefixtures("without_report")
@pytest.mark.filterwarnings("default")
def test_a_setting_without_effect_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("compare", *tiny(arms="sgd"), "--data-dir=x", "--out=out") == 0
    idle, line = capsys.readouterr().err.splitlines()[:2]
    assert "have no effect: of the arms (sgd) none evolves by it" in idle
    assert line.startswith("evostep: warning: the data folder 'x' has no effect on 'digits'")


# Processes that are really killed


class Spawned:
    """A process from nothing, as a shell starts it; its imports take seconds."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evostep", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PAUSE": "0.05"},
        )
        self.pid, self.poll = self._process.pid, self._process.poll

    def wait(self) -> tuple[int, str]:
        """Return the exit code, and what was written on standard error."""
        _, err = self._process.communicate(timeout=60)
        return self._process.returncode, err


class Forked:
    """A process that has imported all that this one has."""

    def __init__(self, *arguments: str) -> None:
        self._err = Path("err.txt")
        self._process = multiprocessing.get_context("fork").Process(
            target=self._main, args=arguments
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def _main(self, *arguments: str) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["PAUSE"] = "0.05"
        with (
            self._err.open("w") as err,
            contextlib.redirect_stderr(err),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            code = exit_code(*arguments)
        raise SystemExit(code)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> tuple[int, str]:
        """Return the exit code, and what was written on standard error."""
        self._process.join(60)
        assert self._process.exitcode is not None
        return self._process.exitcode, self._err.read_text()


def wait_for_lines(directory: Path, n: int, process: Spawned | Forked) -> None:
    """Wait until the history has so many lines, while the process is still at work."""
    path = directory / "history.jsonl"
    until = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < n:
        assert process.poll() is None, process.wait()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.usefixtures("without_report")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", [Forked, pytest.param(Spawned, marks=pytest.mark.slow)])
def test_a_process_that_is_stopped_and_killed_loses_nothing(
    start: type[Spawned | Forked], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # its pauses are long enough for it to be met in the middle
    given = ["compare", *tiny(epochs=16, evolve_from=10, metric="module_of_cli:slow")]
    given += ["--arms=sgd,openai-es"]
    process = start(*given, "--out=out")
    wait_for_lines(here / "out", 2, process)  # in the trunk
    os.kill(process.pid, signal.SIGINT)
    code, err = process.wait()
    assert code == 130
    *_, last = err.splitlines()
    assert last == "evostep: stopped; the same command goes on from the last checkpoint"
    assert len(history(here / "out")) < 10

    process = start(*given, "--out=out")
    wait_for_lines(here / "out", 10 + 6 + 2, process)  # in an arm
    os.kill(process.pid, signal.SIGKILL)
    code, _ = process.wait()
    assert code == -signal.SIGKILL
    assert not (here / "out" / "runs" / "openai-es-seed0" / "result.json").exists()

    assert exit_code(*given, "--out=out") == 0
    assert exit_code(*given, "--out=whole") == 0
    assert weights(here / "out") == weights(here / "whole")
    assert timeless(history(here / "out")) == timeless(history(here / "whole"))
    runs = [read_json(here / name / "results.json")["runs"] for name in ("out", "whole")]
    assert timeless(runs[0]) == timeless(runs[1])


# The article's experiment in small

CIFAR10 = Path(os.environ.get("EVOSTEP_DATA", "data")) / "cifar10"


@pytest.mark.slow
@pytest.mark.skipif(
    not (CIFAR10 / "train.parquet").exists(),
    reason="no cifar10/train.parquet under EVOSTEP_DATA",
)
def test_the_articles_experiment_in_small_on_real_images(here: Path) -> None:
    arms = ("sgd", "sgd-all", "mutation", "openai-es")
    given = {
        "data": "cifar10",
        "data_dir": CIFAR10,
        "model": "resnet18",
        "train_size": 500,
        "fitness_size": 100,
        "test_size": 500,
        "epochs": 2,
        "evolve_from": 1,
        "lr": 0.01,
        "arms": ",".join(arms),
        "threads": None,
    }
    assert exit_code("compare", *tiny(**given), "--out=out") == 0
    results = read_json(here / "out" / "results.json")
    assert results["data"]["title"] == "JPEG-recompressed CIFAR-10"
    assert [r["arm"] for r in results["runs"]] == list(arms)
    budget = results["config"]["budget"]
    assert budget == max(2 * 3 * 600, 2 * 3 * 500 + 6 * 100)
    for result in results["runs"]:
        assert budget <= result["sample_forwards"] < budget + max(3 * 65, 6 * 100)
        assert result["test"]["accuracy"] > 0.1  # ten classes: better than guessing
        assert result["test"]["loss"] < 10
    assert "JPEG-recompressed CIFAR-10" in (here / "out" / "report.html").read_text()
