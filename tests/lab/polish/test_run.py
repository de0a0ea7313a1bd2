"""A network from its weights to better weights, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from evostep import load_decision
from evostep.lab.data.images import load_data
from evostep.lab.data.parts import Part, cut
from evostep.lab.data.splits import make_splits
from evostep.lab.models import build_model
from evostep.lab.options import Options
from evostep.lab.polish.options import PolishOptions
from evostep.lab.polish.run import run_polish
from evostep.lab.weights import save_weights


@pytest.fixture(scope="module")
def unfair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Part, torch.Tensor]:
    """Train a network a little, let it prefer a class; return weights, test part and outputs."""
    data = load_data("digits")
    splits = make_splits(data, 0, train_size=None, fitness_size=300, accept_size=0, test_size=None)
    parts = cut(data, splits, torch.device("cpu"))
    model = build_model("mlp", channels=1, classes=10, image_size=8, seed=0)
    inputs, targets = parts.data.normalise(parts.train.images), parts.train.targets
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        model.get_submodule("head").bias[3] += 3.0
        outputs = model(parts.data.normalise(parts.test.images))
    path = tmp_path_factory.mktemp("unfair") / "w.safetensors"
    save_weights(path, model)
    return path, parts.test, outputs


def test_the_written_weights_decide_as_the_written_decision(
    unfair: tuple[Path, Part, torch.Tensor], tmp_path: Path
) -> None:
    weights, test, outputs = unfair
    network = Options(model="mlp", init_from=weights, given=frozenset({"model", "init_from"}))
    options = PolishOptions(metric="macro-f1", folds=3, budget=2016, network=network)
    record, before = run_polish(options, tmp_path / "out")
    assert not before
    assert record["applied"]
    assert record["verdict"].startswith("improved")
    assert record["budget"]["sample_forwards"] == 2 * len(test)  # before, and as it was written
    model = build_model(
        "mlp",
        channels=1,
        classes=10,
        image_size=8,
        seed=1,
        init_from=tmp_path / "out" / "model.safetensors",
    ).eval()
    data = load_data("digits")
    splits = make_splits(data, 0, train_size=None, fitness_size=300, accept_size=0, test_size=None)
    parts = cut(data, splits, torch.device("cpu"))
    with torch.no_grad():
        decided = model(parts.data.normalise(test.images)).argmax(1)
    served = load_decision(tmp_path / "out" / "decision.json")(outputs.numpy())
    assert decided.tolist() == served.tolist()
    hit = [(d == test.targets).double().mean() for d in (outputs.argmax(1), decided)]
    assert hit[1] > hit[0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "model.safetensors" in card
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == record
