"""Methods: each is an arm by name, and its file under configs/arms says the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from evostep.cli import main
from evostep.cli.options import make_options
from evostep.cli.parser import parse
from evostep.lab.arms.methods import (
    METHODS,
    read_setting,
    strategy_settings,
    write_setting,
)
from evostep.lab.arms.precedence import make_arms
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.comparison import compare as compare_module
from evostep.lab.options import Options
from evostep.lab.report.page import ReportPaths

ROOT = Path(__file__).parents[3]
ARMS = ROOT / "configs" / "arms"
# the others spend what they need, whatever the budget: procedures/test_standing
DESCENDING = [name for name, m in METHODS.items() if PROCEDURES[m.procedure].descends]
CIFAR = Path(os.environ.get("EVOSTEP_DATA", "data")) / "cifar10"


def _arms_of_file(path: Path, out: Path) -> list[dict[str, object]]:
    parsed = parse(["compare", "--config", str(path), "--out", str(out)])
    return [arm.describe() for arm in make_arms(make_options(parsed.compare))]


def test_every_method_has_a_file_and_every_file_a_method() -> None:
    assert {path.stem for path in ARMS.glob("*.yaml")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_file_of_an_arm_says_what_its_name_means(name: str, tmp_path: Path) -> None:
    by_name = [arm.describe() for arm in make_arms(Options(arms=name))]
    assert _arms_of_file(ARMS / f"{name}.yaml", tmp_path) == by_name


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.strategy is not None])
def test_settings_are_read_back_as_they_were_written(name: str) -> None:
    strategy = METHODS[name].strategy
    assert strategy is not None
    for setting in strategy_settings(strategy):
        value = getattr(strategy, setting)
        if isinstance(value, int | float):
            continue
        assert read_setting(setting, write_setting(value)) == value


def test_a_rank_and_a_kind_of_safety_can_be_written_in_yaml() -> None:
    arms = make_arms(
        Options(
            arms=[
                {"method": "low-rank-es", "strategy": {"noise": "low-rank-4"}},
                {"method": "mutation-safe", "strategy": {"scale": "safe-abs"}},
            ]
        )
    )
    described = [arm.describe()["strategy"] for arm in arms]
    assert described[0]["noise"] == "LowRank(rank=4)"
    assert "kind='abs'" in described[1]["scale"]


def _compare(
    out: Path, *options: str, arms: list[str] = DESCENDING
) -> dict[str, dict[str, object]]:
    """Run every method that descends as an arm of one comparison; give the runs by arm."""
    named = ["--arms", ",".join(arms), "--seeds", "1", "--out", str(out)]
    assert main(["compare", *named, *options]) == 0
    results = json.loads((out / "results.json").read_text())
    return {run["arm"]: run for run in results["runs"]}


def _check_runs(runs: dict[str, dict[str, object]], budget: int, most: int) -> None:
    assert set(runs) == set(DESCENDING)
    for name, run in runs.items():
        assert budget <= run["sample_forwards"] < budget + most, name
        assert (run["generations"] > 0) == METHODS[name].evolves, name
        assert 0 <= run["test"]["accuracy"] <= 1, name


@pytest.mark.slow  # test_run sees each end at its budget
def test_every_method_runs_to_the_common_budget_on_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_report(directory: Path) -> ReportPaths:
        return ReportPaths(directory / "results.json", directory / "report.html", ())

    monkeypatch.setattr(compare_module, "write_report", no_report)  # its figures take seconds
    options = ["--train-size", "60", "--fitness-size", "40", "--test-size", "40", "--population"]
    options += ["4", "--epochs", "3", "--evolve-from", "1", "--generations", "1", "--batch", "20"]
    options += ["--calibration-size", "20"]
    runs = _compare(tmp_path / "out", *options)
    budget = json.loads((tmp_path / "out" / "results.json").read_text())["config"]["budget"]
    # the largest single step: a safe mutation's generation, or ESGD's round of scoring
    _check_runs(runs, budget, most=40 * 21 + 10 * 40 * 4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"the real CIFAR-10 is not in {CIFAR.parent.name}/")
def test_every_method_runs_on_cifar10_with_resnet18(tmp_path: Path) -> None:
    options = ["--data", "cifar10", "--data-dir", str(CIFAR), "--model", "resnet18"]
    options += ["--train-size", "2000", "--fitness-size", "200", "--test-size", "200"]
    options += ["--epochs", "2", "--evolve-from", "1", "--generations", "1", "--population", "4"]
    options += ["--calibration-size", "100", "--equal-budget", "false"]
    few = [name for name in DESCENDING if name != "cma-es"]  # the head has 5,130 numbers
    runs = _compare(tmp_path / "out", *options, arms=few)
    assert set(runs) == set(few)
    for name, run in runs.items():
        assert (run["generations"] > 0) == METHODS[name].evolves, name
        assert run["test"]["loss"] < 100, name
