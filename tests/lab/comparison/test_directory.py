"""A published comparison: what a fresh clone holds can be checked and gone on with."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evostep.cli import main
from evostep.lab.comparison import compare as compare_module
from evostep.lab.report.page import ReportPaths
from evostep.lab.storage import read_json

ROOT = Path(__file__).resolve().parents[3]
ARENA = """
data: digits
model: mlp
arms: [sgd, mutation]
contrast:
  {hypothesis: gains, arm: mutation, controls: [sgd], metric: accuracy, tuning_seeds: [9]}
seeds: 2
train_size: 60
fitness_size: 30
accept_size: 0
test_size: 50
epochs: 3
evolve_from: 2
generations: 1
population: 4
threads: 1
"""
KEPT = ("results.json", "history.jsonl", "plan.json", "splits.json", "result.json", "table.md")


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "environment")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def lines(directory: Path) -> list[Any]:
    written = (directory / "history.jsonl").read_text().splitlines()
    return sorted((timeless(json.loads(line)) for line in written), key=json.dumps)


@pytest.fixture(scope="module", autouse=True)
def _without_report() -> Any:
    """Figures take seconds, and are tested by themselves."""

    def no_report(directory: Path) -> ReportPaths:
        return ReportPaths(directory / "table.md", directory / "report.html", ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "write_report", no_report)
        patch.setattr("evostep.lab.report.page.write_report", no_report)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arena that was run here, beside its configuration."""
    folder = tmp_path_factory.mktemp("arena")
    (folder / "arena.yaml").write_text(ARENA)
    assert go_on(folder / "arena.yaml", folder / "whole") == 0
    return folder / "whole"


def go_on(config: Path, out: Path) -> int:
    try:
        return main(["compare", f"--config={config}", f"--out={out}"])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def clone(whole: Path, tmp_path: Path) -> Path:
    """What git keeps of the arena, and no empty folder."""
    for path in whole.rglob("*"):
        if path.name in KEPT:
            copy = tmp_path / "clone" / path.relative_to(whole)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return tmp_path / "clone"


def test_git_keeps_what_going_on_needs_and_no_weights(whole: Path) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no repository")
    paths = [p.relative_to(whole).as_posix() for p in whole.rglob("*") if p.is_file()]
    assert {"runs/sgd-seed0/result.json", "plan.json", "splits.json"} <= set(paths)
    named = "".join(f"results/arena/{path}\n" for path in paths)
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        input=named, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    ignored = {path.removeprefix("results/arena/") for path in done.stdout.splitlines()}
    assert {path for path in paths if Path(path).name in KEPT} == set(paths) - ignored


@pytest.mark.parametrize("missing", ["mutation-seed1", "*-seed1", "sgd-seed0"])
def test_a_clone_goes_on_where_runs_are_missing(missing: str, whole: Path, clone: Path) -> None:
    for folder in list((clone / "runs").glob(missing)):
        shutil.rmtree(folder)
    assert go_on(whole.parent / "arena.yaml", clone) == 0
    results, expected = (read_json(folder / "results.json") for folder in (clone, whole))
    assert timeless(results) == timeless(expected)
    assert results["registered"]["registered"] is True
    assert lines(clone) == lines(whole)


def test_a_whole_clone_is_reported_without_its_data(
    whole: Path, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_data(*_: Any, **__: Any) -> None:
        pytest.fail("data were read")

    monkeypatch.setattr("evostep.lab.comparison.plan.load_data", no_data)
    before = (clone / "results.json").read_bytes()
    assert go_on(whole.parent / "arena.yaml", clone) == 0
    assert "holds every run of this comparison: nothing is run" in capsys.readouterr().out
    assert (clone / "results.json").read_bytes() == before
    (whole.parent / "other.yaml").write_text(ARENA.replace("epochs: 3", "epochs: 4"))
    with pytest.raises(pytest.fail.Exception, match="data were read"):  # it is not that comparison
        go_on(whole.parent / "other.yaml", clone)


def test_a_clone_refuses_what_was_not_registered(
    whole: Path, clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "more.yaml"
    config.write_text(ARENA.replace("seeds: 2", "seeds: 3"))
    assert go_on(config, clone) != 0
    error = capsys.readouterr().err.strip()
    assert "contrast" in error
    assert "\n" not in error
