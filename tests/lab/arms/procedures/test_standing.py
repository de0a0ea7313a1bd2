"""Controls without gradient steps, and a comparison that has none: no onnxruntime is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evostep.cli import main
from evostep.errors import InputError
from evostep.lab.arms.precedence import make_arms
from evostep.lab.comparison.plan import make_plan
from evostep.lab.data.sources import text_lines
from evostep.lab.options import Options
from evostep.lab.reading import model as module

ARMS: list[Any] = [
    "untouched",
    {"method": "tuned-by-hand", "label": "filters"},
    {"method": "cma-es", "start_from": "filters", "space": "all", "strategy": {"population": 4}},
    {"method": "spsa", "start_from": "filters"},
]
OPTIONS: dict[str, Any] = {
    "data": "text-lines:0",
    "model": "text-reader",
    "metric": "near-match",
    "epochs": 0,
    "evolve_from": 0,
    "generations": 3,
    "train_size": 1,
    "fitness_size": 4,
    "test_size": 5,
    "engine": "inplace",
}
LINES = 12


def bright(images: Tensor) -> list[str]:
    """A reader of brightness: the nearer the mean is to 0.9, the more characters are right."""
    return ["ABCD"[: round(4 - 8 * abs(float(image.mean()) - 0.9))] for image in images]


@pytest.fixture(autouse=True)
def few_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def draw(series: int, lines: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(60, 200, (LINES, 3, 48, 80), dtype=torch.uint8)
        return images, text_lines.encode(["ABCD"] * LINES, 4)

    monkeypatch.setattr(text_lines, "drawn", draw)
    monkeypatch.setattr(module, "recognise", bright)
    monkeypatch.setattr(module, "filtered", lambda images, operations: images)
    monkeypatch.setattr(module, "in_space", lambda images, space: images)
    monkeypatch.setenv("EVOSTEP_CACHE", str(tmp_path / "cache"))


def test_a_comparison_without_gradients(tmp_path: Path) -> None:
    config, out = tmp_path / "arena.yaml", tmp_path / "out"
    config.write_text(json.dumps({**OPTIONS, "arms": ARMS, "seeds": 2}))
    assert main(["compare", "--config", str(config), "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    runs = {(run["arm"], run["seed"]): run for run in results["runs"]}
    assert len(runs) == 8
    for seed in (0, 1):
        untouched, filters = runs["untouched", seed], runs["filters", seed]
        assert untouched["sample_forwards"] == 0
        assert 0 < filters["sample_forwards"] <= 4 * module.TextReader.tunings
        for label in ("cma-es", "spsa"):
            run = runs[label, seed]
            assert run["generations"] >= 3
            assert run["epochs"] == 0
            assert run["sample_forwards"] > filters["sample_forwards"]
            assert run["fitness"]["near-match"] >= filters["fitness"]["near-match"]
        assert filters["fitness"]["near-match"] >= untouched["fitness"]["near-match"]
        assert set(untouched["test"]) == {"accuracy", "loss", "near-match"}
    assert main(["compare", "--config", str(config), "--out", str(out)]) == 0  # nothing is left


def test_all_who_search_have_one_budget() -> None:
    plan = make_plan(Options(**OPTIONS, arms=ARMS, seeds=1))
    budget = plan.budgets["cma-es"]
    cost = module.TextReader.tunings * 4
    assert budget == cost + 3 * (4 + 1) * 4 + 2 * 4  # CMA-ES, whose phase is judged at its end
    (start, labels) = plan.starts[next(iter(plan.starts))]
    assert labels == ["cma-es", "spsa"]
    assert start.budget == cost


@pytest.mark.parametrize("arm", ["sgd", "cma-es", {"method": "sgd", "start_from": "untouched"}])
def test_without_epochs_nobody_descends(arm: Any) -> None:
    label = arm if isinstance(arm, str) else "sgd"
    with pytest.raises(InputError, match=f"arm '{label}' takes gradient steps, and --epochs 0"):
        make_arms(Options(epochs=0, evolve_from=0, arms=["untouched", arm]))


def test_a_model_without_settings_of_its_own_is_told() -> None:
    with pytest.raises(InputError, match=r"tunes the model's own settings, and mlp has no method"):
        make_plan(Options(model="mlp", arms="sgd,tuned-by-hand", seeds=1))


def test_calibrated_changes_the_statistics_alone_and_costs_what_it_says(tmp_path: Path) -> None:
    arms = [{"method": "sgd", "label": "first"}, {"method": "calibrated", "start_from": "first"}]
    arms.append({"method": "untouched", "start_from": "first"})
    given = {"data": "digits", "epochs": 1, "evolve_from": 0, "batch": 20, "train_size": 40}
    given |= {"fitness_size": 20, "test_size": 20, "arms": arms, "seeds": 1}
    config, out = tmp_path / "arena.yaml", tmp_path / "out"
    config.write_text(json.dumps(given))
    assert main(["compare", "--config", str(config), "--out", str(out)]) == 0
    from safetensors.torch import load_file

    before, after = (
        load_file(out / "runs" / f"{label}-seed0" / "model.safetensors")
        for label in ("untouched", "calibrated")
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {n for n in before if n.rpartition(".")[2].startswith("running")}
    assert statistics <= moved
    assert not [name for name in moved - statistics if not name.endswith("num_batches_tracked")]
    runs = {
        r["arm"]: r["sample_forwards"]
        for r in json.loads((out / "results.json").read_text())["runs"]
    }
    assert runs["calibrated"] - runs["untouched"] == 60
