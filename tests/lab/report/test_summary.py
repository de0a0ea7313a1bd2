"""The short table of a terminal: four columns, never wider than 80."""

from pathlib import Path
from typing import Any

import pytest

from evostep.lab.report.page import ReportPaths, write_report
from evostep.lab.storage import write_json


def summary_of(
    tests: dict[str, list[float | None]],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    metric: str = "accuracy",
) -> list[str]:
    monkeypatch.setattr("evostep.lab.report.figures.draw_figures", lambda results, history: [])
    runs: list[dict[str, Any]] = [
        {"arm": arm, "seed": seed, "test": {metric: value}, "train": {}}
        for arm, values in tests.items()
        for seed, value in enumerate(values)
    ]
    arms = [{"label": label, "control": label.startswith("sgd")} for label in tests]
    config = {"arms": arms, "metric": metric, "model": "mlp", "seeds": 3}
    config["seeds"] = sorted({run["seed"] for run in runs})
    write_json(directory / "results.json", {"config": config, "runs": runs, "data": {"title": "D"}})
    paths: ReportPaths = write_report(directory)
    lines = paths.summary.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_arm_test_difference_and_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests: dict[str, list[float | None]] = {
        "sgd": [0.80, 0.82, 0.84],
        "sgd-all": [0.70, 0.71, 0.75],
        "better": [0.90, 0.93, 0.94],
        "worse": [0.60, 0.62, 0.63],
        "as good": [0.81, 0.80, 0.85],
        "equal": [0.80, 0.82, 0.84],
        "lost": [0.80, None, 0.84],
    }
    head, _, names, *rows = summary_of(tests, tmp_path, monkeypatch)[:10]
    assert head == "D, mlp, 3 seeds; differences to sgd in points"
    assert " ".join(names.split()) == "arm test accuracy (%) difference (95% CI) outcome"
    found = {row[:9].strip(): " ".join(row[9:].split()) for row in rows}
    assert found["sgd"] == "82.00 ± 2.00 – strongest control"
    assert found["sgd-all"].startswith("72.00 ± 2.65 −10.00 (")
    assert found["better"] == "92.33 ± 2.08 +10.33 (+8.90 to +11.77) better"
    assert found["worse"].endswith(" worse")
    assert found["as good"].endswith(" no difference shown")
    assert found["equal"].endswith(" +0.00 same on every seed")
    assert found["lost"] == "82.00 ± 2.83 – 1 of 3 diverged"


def test_long_labels_and_wide_numbers_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = "a-label-of-many-words-" * 4
    tests: dict[str, list[float | None]] = {
        "sgd": [-123456.5, -123459.25, -123450.0],
        label + "one": [-123416.5, -123159.25, -123350.0],
        label + "two": [-123456.5, -123459.25, -123457.0],
    }
    lines = summary_of(tests, tmp_path, monkeypatch, "neg-loss")
    first, second = (line.split()[0] for line in lines[4:6])
    assert first.endswith("-one")
    assert second.endswith("-two")
    assert "…" in first
    assert " to " not in lines[4]  # there was no room for intervals
    short = {"sgd": [0.5, 0.6], label: [0.5, 0.7]}
    assert " to " in summary_of(short, tmp_path, monkeypatch)[4]  # type: ignore[arg-type]


def test_one_seed_and_one_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = summary_of({"sgd": [0.5], "other": [0.6]}, tmp_path, monkeypatch)
    assert lines[0] == "D, mlp, 1 seed; differences to sgd in points"
    assert lines[4].split()[-2:] == ["one", "seed"]
    assert "No verdict" in lines[-2] + lines[-1]
    alone = summary_of({"other": [0.6]}, tmp_path, monkeypatch)
    assert alone[0] == "D, mlp, 1 seed"


N = None
# tests by arm; what the rows of the arms end with; what the verdict says
DIVERGED: dict[str, tuple[dict[str, list[float | None]], dict[str, str], str]] = {
    "control": (
        {"sgd": [0.5, N, 0.7], "es": [0.6, 0.7, 0.9]},
        {"sgd": "1 of 3 diverged", "es": "– control diverged"},
        "No verdict against the control, sgd, in test accuracy: runs of it diverged.",
    ),
    "control, two seeds": (
        {"sgd": [0.5, N], "es": [0.6, 0.7]},
        {"sgd": "1 of 2 diverged", "es": "– control diverged"},
        "runs of it diverged.",
    ),
    "both": (
        {"sgd": [0.5, N, 0.7], "es": [N, 0.7, 0.9]},
        {"sgd": "1 of 3 diverged", "es": "– both diverged"},
        "runs of it diverged.",
    ),
    "arm": (
        {"sgd": [0.5, 0.6, 0.7], "es": [N, 0.7, 0.9]},
        {"sgd": "strongest control", "es": "– 1 of 3 diverged"},
        "runs of every other arm diverged.",
    ),
    "one of several controls": (
        {"sgd": [0.5, 0.6, 0.7], "sgd-all": [0.9, N, 0.9], "es": [0.6, 0.71, 0.8]},
        {"sgd": "strongest control", "sgd-all": "– 1 of 3 diverged", "es": "better"},
        "es beats the strongest control, sgd, in test accuracy, by",
    ),
    "arm, all seeds": (
        {"sgd": [0.5, 0.6], "es": [N, N], "other": [0.6, 0.55]},
        {"es": "diverged in 2 of 2 – diverged", "other": "no difference shown"},
        "None of the 2 arms is shown to beat",
    ),
    "control, its only seed": (
        {"sgd": [N], "es": [0.6]},
        {"sgd": "diverged in 1 of 1 – strongest control", "es": "– control diverged"},
        "runs of it diverged.",
    ),
}


@pytest.mark.parametrize("case", DIVERGED)
def test_whose_runs_diverged(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests, ends, headline = DIVERGED[case]
    lines = summary_of(tests, tmp_path, monkeypatch)
    table = lines[lines.index("", 1) + 2 :][: len(tests)]
    rows = {line.split()[0]: " ".join(line.split()) for line in table}
    for arm, end in ends.items():
        assert rows[arm].endswith(end)
    assert headline in " ".join(lines)
    written = (tmp_path / "table.md").read_text()
    cells = dict(line[2:].split(" | ")[:2] for line in written.splitlines() if line[:2] == "| ")
    finite = [value for value in tests["es"] if value is not None]
    assert cells["es"] == str(len(finite))
    assert headline.rstrip(".") in written
