"""A network with examples that it was not trained on: found, checked, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.data.images import load_data
from evostep.lab.data.splits import make_splits
from evostep.lab.models import build_model
from evostep.lab.options import Options
from evostep.lab.polish.options import PolishOptions
from evostep.lab.polish.subject import make_subject, warn_of_order
from evostep.lab.weights import save_weights


def options(weights: Path | None, **changed: Any) -> PolishOptions:
    own = {name: changed.pop(name) for name in ("part", "split_seed") if name in changed}
    given = {"init_from": weights, **changed}
    return PolishOptions(**own, network=Options(**given, given=frozenset(given)))


def save(path: Path, name: str = "mlp", classes: int = 10) -> Path:
    model = build_model(name, channels=1, classes=classes, image_size=8, seed=5)
    save_weights(path, model)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(tmp_path / "w.safetensors")


@pytest.mark.parametrize("seed", [None, 3])
def test_the_test_part_is_that_of_training(weights: Path, seed: int | None) -> None:
    subject = make_subject(options(weights, model="mlp", split_seed=seed))
    data = load_data("digits")
    splits = make_splits(
        data, seed or 0, train_size=None, fitness_size=300, accept_size=0, test_size=None
    )
    assert torch.equal(subject.targets, data.targets[splits.test])
    assert sum(len(targets) for _, targets in subject.examples) == len(splits.test)
    assert subject.prior is None  # who has trained it is not known
    own = subject.model
    assert own is not None
    fresh = build_model("mlp", channels=1, classes=10, image_size=8, seed=5)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, own.state_dict()[name])


def test_other_parts(weights: Path) -> None:
    sizes = {
        part: len(make_subject(options(weights, model="mlp", part=part)).targets)
        for part in ("test", "fitness", "all")
    }
    assert sizes == {"test": 449, "fitness": 300, "all": 1797}
    with pytest.raises(InputError, match="accept part is empty: give --accept-size"):
        make_subject(options(weights, model="mlp", part="accept"))


def test_weights_in_a_run_s_directory_tell_model_data_and_seed(tmp_path: Path) -> None:
    told = {"model": "small-cnn", "data": "digits", "fitness_size": 40, "test_size": 97}
    (tmp_path / "plan.json").write_text(json.dumps({"options": told, "arms": {}}))
    path = save(tmp_path / "runs" / "sgd-seed7" / "model.safetensors", "small-cnn")
    subject = make_subject(options(path))
    assert subject.facts["model"] == "small-cnn"
    assert subject.facts["split seed"] == 7
    assert len(subject.targets) == 97
    data = load_data("digits")
    splits = make_splits(data, 7, train_size=None, fitness_size=40, accept_size=0, test_size=97)
    assert torch.equal(subject.targets, data.targets[splits.test])
    counts = data.targets[splits.train].bincount().double()
    assert subject.prior == pytest.approx((counts / counts.sum()).tolist())
    assert len(make_subject(options(path, test_size=50)).targets) == 50  # what is given stays
    assert make_subject(options(path, split_seed=1)).facts["split seed"] == 1


@pytest.mark.parametrize(
    ("saved", "changed", "told"),
    [
        (("small-cnn", 10), {"model": "mlp"}, "give its own weights"),
        (("mlp", 7), {"model": "mlp"}, r"head for other classes.*give weights for these 10"),
        (("mlp", 10), {}, "lies in no directory of a run.*give --model"),
        (("mlp", 10), {"model": "mpl"}, "did you mean mlp"),
        (("mlp", 10), {"model": "mlp", "data": "digit"}, "did you mean digits"),
    ],
)
def test_what_does_not_fit_is_refused(
    saved: tuple[str, int], changed: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "w.safetensors", *saved)
    with pytest.raises(InputError, match=told) as caught:
        make_subject(options(path, **changed))
    assert "\n" not in str(caught.value)


def test_a_network_that_nobody_trained_is_refused() -> None:
    network = Options(model="mlp", given=frozenset({"model"}))
    with pytest.raises(InputError, match="was never trained: give --init-from FILE"):
        make_subject(PolishOptions(network=network))


def test_ordered_classes_that_do_not_ascend_are_told() -> None:
    warn_of_order("quadratic-kappa", ("1", "2", "10"))
    warn_of_order("macro-f1", ("1", "10", "2"))
    warn_of_order("quadratic-kappa", ("low", "high"))
    with pytest.warns(UserWarning, match="1, 10, 2"):
        warn_of_order("quadratic-kappa", ("1", "10", "2"))
