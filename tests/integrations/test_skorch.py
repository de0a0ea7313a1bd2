from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evostep import Alternate, Evolved, Fitness

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    skorch = pytest.importorskip("skorch", reason="needs evostep[skorch]")
    from evostep.integrations.skorch import Evolve, evolved

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def make(make_network: Any, strategy: Any, digits: Any) -> Any:
    def net(generations: Any = 3, callbacks: Any = (), **options: Any) -> Any:
        batches = [digits.other.tensors]
        settings = {
            "criterion": nn.CrossEntropyLoss,
            "optimizer": evolved(torch.optim.SGD, strategy),
            "optimizer__momentum": 0.9,
            "lr": 0.1,
            "batch_size": 32,
            "verbose": 0,
            **options,
        }
        of_phases = {
            key: settings.pop(key) for key in ("trackers", "every_steps") if key in settings
        }
        evolve = Evolve(lambda m: Fitness(m, batches, "neg-loss"), generations, **of_phases)
        return skorch.NeuralNetClassifier(
            make_network, callbacks=[*callbacks, ("evolve", evolve)], **settings
        )

    return net


@pytest.fixture
def arrays(digits: Any) -> Any:
    return [part.numpy() for part in digits.train.tensors]


def test_twenty_steps_and_twenty_are_forty(
    make: Any, arrays: Any, watch: Any, same: Any, tmp_path: Path
) -> None:
    whole = make(trackers=[watch], train_split=None, max_epochs=4).fit(*arrays)
    assert watch.moved > 0
    assert watch.calls == ["begin", *(f"phase {n}" for n in (10, 20, 30, 40)), "close"]
    half = make(train_split=None, max_epochs=2).fit(*arrays)
    files = {f"f_{name}": str(tmp_path / name) for name in ("params", "optimizer", "history")}
    half.save_params(**files)
    saved = torch.load(tmp_path / "optimizer", weights_only=True)
    assert saved["evolution"]["generation"] == 6
    rest = make(train_split=None, max_epochs=2).initialize()
    rest.load_params(**files)
    rest.partial_fit(*arrays)
    assert len(rest.history) == 4
    same(whole.module_.state_dict(), rest.module_.state_dict())
    same(whole.optimizer_.state_dict(), rest.optimizer_.state_dict())


def test_the_validation_is_of_the_weights_that_are_saved(
    make: Any, arrays: Any, tmp_path: Path
) -> None:
    best = skorch.callbacks.Checkpoint(monitor="valid_loss_best", dirname=str(tmp_path))
    split = skorch.dataset.ValidSplit(3, stratified=False)
    net = make(callbacks=[best], train_split=split, max_epochs=3).fit(*arrays)
    at = int(np.argmin(net.history[:, "valid_loss"]))
    net.load_params(checkpoint=best)
    _, valid = net.get_split_datasets(*arrays)
    inputs, targets = valid[:]
    with torch.no_grad():
        loss = nn.functional.cross_entropy(
            net.module_(torch.as_tensor(inputs)), torch.as_tensor(targets)
        )
    assert net.history[at, "valid_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert np.isfinite(net.history[:, "evolution/parent"]).all()


def test_epochs_without_a_phase_and_a_schedule(make: Any, arrays: Any, watch: Any) -> None:
    net = make(Alternate(gradient=2, evolution=1), trackers=[watch], max_epochs=4).fit(*arrays)
    assert watch.calls == ["begin", "phase 16", "phase 32", "close"]
    assert np.isnan(net.history[:, "evolution/parent"]).tolist() == [True, False, True, False]


def test_after_steps(make: Any, arrays: Any, watch: Any) -> None:
    """Eight batches to an epoch, the rest validates; a second call goes on counting."""
    net = make(1, trackers=[watch], every_steps=5, max_epochs=1).fit(*arrays)
    net.partial_fit(*arrays)
    assert watch.calls == ["begin", "phase 5", "close", "begin", "phase 10", "phase 15", "close"]


def test_it_is_cloned_and_set_as_scikit_learn_does(make: Any, arrays: Any) -> None:
    from sklearn.base import clone

    net = clone(make(max_epochs=1)).set_params(callbacks__evolve__generations=2, lr=0.2)
    copy.deepcopy(net).fit(*arrays)
    net.fit(*arrays)
    assert isinstance(net.optimizer_, Evolved)
    assert net.optimizer_.evolution.generation == 2
    assert net.optimizer_.param_groups[0]["lr"] == 0.2
