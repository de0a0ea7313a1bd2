"""Experts: on images that no part holds, each on its own classes; what others start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evostep.cli import main
from evostep.errors import InputError
from evostep.lab.arms.procedures import experts as module
from evostep.lab.arms.procedures.experts import Among
from evostep.lab.comparison.plan import make_plan
from evostep.lab.options import Options

ARMS: list[Any] = [
    {"method": "experts", "label": "uniform"},
    {"method": "tuned-by-hand", "label": "task-arithmetic", "start_from": "uniform"},
    {"method": "cma-es", "start_from": "uniform", "space": "coefficients", "population": 4},
    {
        "method": "sgd-all",
        "label": "gradient",
        "start_from": "uniform",
        "train_only": "coefficients",
    },
    {"method": "sgd-all", "label": "fine-tuned", "start_from": "uniform", "train_only": "net"},
]
OPTIONS: dict[str, Any] = {
    "data": "digits",
    "model": "merged-cnn",
    "epochs": 1,
    "evolve_from": 0,
    "generations": 2,
    "train_size": 10,
    "fitness_size": 20,
    "test_size": 20,
    "engine": "inplace",
    "batch": 10,
}


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXAMPLES", 60)
    monkeypatch.setattr(module, "START_EXAMPLES", 30)
    monkeypatch.setattr(module, "START_EPOCHS", 1)
    monkeypatch.setattr(module, "EPOCHS", 2)


def test_experts_are_trained_once_and_each_arm_moves_its_own_numbers(tmp_path: Path) -> None:
    config, out = tmp_path / "arena.yaml", tmp_path / "out"
    config.write_text(json.dumps({**OPTIONS, "arms": ARMS, "seeds": 1}))
    assert main(["compare", "--config", str(config), "--out", str(out)]) == 0
    from safetensors.torch import load_file

    ends = {path.parent.name[:-6]: load_file(path) for path in out.glob("runs/*/*.safetensors")}
    assert len(ends) == len(ARMS)
    uniform = ends["uniform"]
    assert all(bool((uniform[n] == 0.5).all()) for n in uniform if n.startswith("coefficients"))
    vectors = [uniform[n].flatten(1) for n in uniform if n.startswith("vector")]
    assert all(bool(v.any(1).all()) for v in vectors)  # each expert left the start
    moved = {
        label: {n.partition(".")[0] for n in end if not torch.equal(end[n], uniform[n])}
        for label, end in ends.items()
    }
    assert moved["gradient"] == {"coefficients"}
    assert moved["fine-tuned"] == {"net"}
    assert moved["cma-es"] | moved["task-arithmetic"] <= {"coefficients"}
    runs = {run["arm"]: run for run in json.loads((out / "results.json").read_text())["runs"]}
    assert runs["uniform"]["sample_forwards"] == 3 * (30 + 2 * 60)
    assert runs["cma-es"]["generations"] >= 2


def test_what_experts_cost_is_known_beforehand() -> None:
    plan = make_plan(Options(**OPTIONS, arms=ARMS, seeds=1))
    assert plan.sizes.spare == 1797 - 50
    (start, labels) = plan.starts[next(iter(plan.starts))]
    assert start.budget == 3 * (30 + 2 * 60)
    assert len(labels) == len(ARMS) - 1


def test_an_expert_chooses_among_its_classes() -> None:
    network = nn.Linear(3, 4)
    outputs = Among(network, torch.tensor([1, 3]), of=4)(torch.randn(50, 3))
    assert set(outputs.argmax(1).tolist()) <= {1, 3}
    outputs.softmax(1)[:, 1].sum().backward()
    assert network.bias.grad is not None
    assert network.bias.grad[[0, 2]].tolist() == [0, 0]


def test_experts_without_a_model_that_merges_are_refused() -> None:
    with pytest.raises(InputError, match="'experts' merges experts, and mlp has no method learn"):
        make_plan(Options(**{**OPTIONS, "model": "mlp"}, arms="experts", seeds=1))


def test_experts_without_images_of_their_own_are_refused() -> None:
    everything = {**OPTIONS, "train_size": None}
    with pytest.raises(InputError, match="images that no part holds, and all are in one"):
        make_plan(Options(**everything, arms="experts", seeds=1))
