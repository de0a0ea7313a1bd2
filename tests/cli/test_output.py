"""What a command says: JSON and nothing else, quietly, at length, in colours or none."""

import json
import os
import pty
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from evostep.cli import main
from evostep.cli.output import answer, fail, manner, note, progress_console, show_warning, speaking
from evostep.cli.terminal import Steady
from evostep.errors import InputError
from evostep.lab.comparison.progress import show_progress
from evostep.lab.polish.progress import show_search

TINY = [
    *("--model=mlp", "--train-size=60", "--fitness-size=30", "--test-size=50", "--epochs=2"),
    *("--evolve-from=1", "--generations=1", "--population=4", "--threads=1"),
]
LOUD = """
def metric(outputs, targets):
    print("noise")
    return (outputs.argmax(1) == targets).double()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, digits_read_once: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("evostep.lab.report.figures.draw_figures", lambda results, history: [])
    (tmp_path / "loud_of_output.py").write_text(LOUD)
    rows = [f"{-1 if i % 5 else 2},{i % 3},{'ja' if i % 2 else 'né−'}" for i in range(60)]
    (tmp_path / "s.csv").write_text("score_né−,score_ja,label\n" + "\n".join(rows) + "\n", "utf-8")
    return tmp_path


@pytest.mark.filterwarnings("default")
def test_every_command_answers_by_one_json_object(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where a metric of the user's prints; and a code page without its signs spoils none."""

    def told(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == 0
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return found

    scores = ["--scores=s.csv", "--scores-are=logits"]
    assert told("evaluate", *scores)["class_names"] == ["né−", "ja"]
    polish = ["polish", *scores, "--budget=672", "--folds=3"]
    polished = told(*polish)
    out = Path(polished["out"])
    assert out.parent == Path("runs")
    assert polished["verdict"] == json.loads((out / "results.json").read_text())["verdict"]
    assert told(*polish) == polished  # and the same place
    compare = ["compare", *TINY, "--arms=sgd,mutation", "--seeds=1"]
    plan = told(*compare, "--dry-run")
    assert list(plan["arms"]) == ["sgd", "mutation"]
    assert plan["hours"] > 0
    assert not Path(plan["out"]).exists()
    compared = told(*compare, "--metric=loud_of_output:metric")
    assert {run["arm"] for run in compared["runs"]} == {"sgd", "mutation"}
    assert Path(compared["page"]).is_file()
    trained = told("train", *TINY, "--arm=sgd")
    assert len(trained["runs"]) == 1
    assert told("report", trained["out"])["runs"] == trained["runs"]
    weights = Path(trained["out"]) / "runs" / "sgd-seed0" / "model.safetensors"
    sigma = told("sigma", f"--init-from={weights}", "--draws=1")
    assert sigma["reached"]
    assert 0.001 < sigma["sigma"] < 2
    assert list(told("list")) == ["data", "models", "metrics", "methods"]
    assert list(told("methods"))[:2] == ["sgd", "sgd-all"]


def test_an_answer_is_ascii_and_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking({"json": True}):
        print("not this")
        answer("text", {"a": float("nan"), "b": [float("inf"), "−"], "c": Path("x")})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"a": None, "b": [None, "−"], "c": "x"}


def test_bad_input_leaves_stdout_empty(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["list", "metods"], ["compare", "--lr=fast"], ["evaluate"], ["sigma"]):
        with pytest.raises(SystemExit, match="2"):
            main([*wrong, "--json"])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1


@pytest.mark.filterwarnings("default")
def test_quiet_leaves_answer_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *TINY, "--arms=mutation", "--seeds=1", "--data-dir=x", "--out=out"]
    assert main(["-q", *command]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("page:  out/report.html\n")
    lines = captured.err.splitlines()
    assert all(line.startswith("evostep: warning: ") for line in lines)
    assert any("the data folder 'x' has no effect" in line for line in lines)


def test_what_a_quiet_run_warns_of_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking({"quiet": True}), show_progress(9, progress_console()) as watch:
        watch.say("step")
        note("besides")
        with pytest.warns(UserWarning, match="^4 scorings failed$"):
            watch.warn("4 scorings failed")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_verbose_tells_each_step_and_where_things_are_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["compare", *TINY, "--arms=mutation", "--seeds=1", "--out=out"]
    assert main(["--verbose", *command]) == 0
    assert len(capsys.readouterr().err.splitlines()) >= 3  # one in ten seconds else
    with pytest.raises(SystemExit):
        main(["list", "metods", "-v"])
    *trace, line = capsys.readouterr().err.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert line.startswith("evostep: error: unknown list 'metods'")
    with speaking({"verbose": True}):
        assert manner().verbose
        show_warning("so\nit is", UserWarning, "model.py", 7)
    show_warning("so\nit is", UserWarning, "model.py", 7)
    assert capsys.readouterr().err.splitlines() == [
        "evostep: warning: so it is (model.py:7)",
        "evostep: warning: so it is",
    ]


def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="leave one out"), speaking({"quiet": 1, "verbose": 1}):
        pass
    with pytest.raises(SystemExit, match="2"):
        main(["-q", "list", "-v"])
    assert "exclude each other" in capsys.readouterr().err


def test_a_message_of_no_error_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking({"verbose": True}), pytest.raises(SystemExit, match="1"):
        fail("so it is", 1)
    assert capsys.readouterr().err == "evostep: error: so it is\n"


COLOUR = re.compile(r"\x1b\[[\d;]*\b(3[0-7]|38|4[0-7]|48|9[0-7])[;m]")


def shown(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool, own: dict[str, bool] | None = None
) -> str:
    """What the progress of a comparison and of polishing writes to stderr."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    with os.fdopen(writer, "w") as stream, warnings.catch_warnings():
        monkeypatch.setattr(sys, "stderr", Steady(stream))
        with speaking(own or {}):
            with show_progress(9, progress_console()) as watch:
                watch.advance(3)
                watch.say("step")
            with show_search(fraction=True) as search:
                search(0.5, 0.01)
        stream.flush()
        os.set_blocking(reader, False)
        found, until = b"", time.monotonic() + 0.5  # a terminal hands over in its own time
        while time.monotonic() < until:
            try:
                found += os.read(reader, 100_000)
            except BlockingIOError:
                time.sleep(0.05)
        os.close(reader)
        return found.decode()


def test_colours_are_for_terminals_and_never_with_no_color(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert COLOUR.search(shown(monkeypatch, terminal=True))
    assert shown(monkeypatch, terminal=True, own={"quiet": True}) == ""
    assert shown(monkeypatch, terminal=False) == "[ 33%, 0:00 left] step\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in shown(monkeypatch, terminal=False)
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(monkeypatch, terminal=True)
    assert "polishing" in text
    assert not COLOUR.search(text)
