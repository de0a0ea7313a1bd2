"""`evostep evaluate`: every metric with its interval, nothing changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evostep.cli import main


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.csv"
    rows = [f"{-1 if i % 5 else 2},{i % 3},{'yes' if i % 2 else 'no'}" for i in range(60)]
    path.write_text("score_no,score_yes,label\n" + "\n".join(rows) + "\n")
    return path


def test_every_metric_and_class_is_told_and_nothing_written(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"--scores={scores}", "--scores-are=logits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    told = "\n".join(lines)
    for name in ("accuracy", "macro-f1", "quadratic-kappa", "  no", "  yes", "n = 60 examples"):
        assert name in told
    assert list(tmp_path.iterdir()) == [scores]


def test_results_are_written_whole_and_shown_again(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", f"--scores={scores}", "--scores-are=logits", f"--out={tmp_path / 'o'}"]
    assert main(command) == 0
    first = capsys.readouterr().out
    record = json.loads((tmp_path / "o" / "results.json").read_text())
    accuracy = record["metrics"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert main(command) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit):
        main([*command, "--seed=1"])
    assert "--seed was 0, now 1" in capsys.readouterr().err


def test_costs_add_a_row(scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = tmp_path / "costs.csv"
    costs.write_text("0,1\n5,0\n")
    command = ["evaluate", f"--scores={scores}", "--scores-are=logits", f"--costs={costs}"]
    assert main(command) == 0
    assert "cost, lower is better" in capsys.readouterr().out


def test_options_of_polish_alone_are_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--scores=s.csv", "--budget=3"])
    assert left.value.code == 2
    assert "--budget" in capsys.readouterr().err
