"""Inference mode, and averaged models, with whatever scores them: the same as without."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evostep import Evolution, Fitness, LowRank, Only, OpenAIES, RandomSearch

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
SEARCHES = {
    "normal": RandomSearch(0.3, population=4),
    "low rank": RandomSearch(0.3, population=4, noise=LowRank(1)),
    "absolute": RandomSearch(0.3, population=4, scale="absolute"),
}


def mode(on: bool) -> AbstractContextManager[Any]:
    return torch.inference_mode() if on else nullcontext()


def parents(strategy: RandomSearch, made: bool, *evolved: bool) -> list[float]:
    torch.manual_seed(0)
    with mode(made):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    search, found = Evolution(model, strategy), []
    for on in evolved:
        with mode(on):
            fitness = Fitness(model, [(X, Y)], "neg-loss")
            found += [record.parent for record in search.evolve(fitness, 2)]
            search.load_state_dict(search.state_dict())
    return found


@pytest.mark.parametrize("name", SEARCHES)
def test_random_search_in_inference_mode_and_out_of_it(name: str) -> None:
    plain = parents(SEARCHES[name], False, False, False, False)
    assert plain[-1] > plain[0], "it moved"
    for made, evolved in ((False, "iii"), (False, "oio"), (False, "ioi"), (True, "iii")):
        assert parents(SEARCHES[name], made, *(one == "i" for one in evolved)) == plain


@pytest.mark.parametrize("engine", ["auto", "lowrank", "vmap", "prefix"])
@pytest.mark.filterwarnings("ignore:engine")
def test_samples_around_an_anchor_score_the_same_in_every_engine(engine: str) -> None:
    """Their low-rank factors are relative to the anchor, from which the center has moved."""
    found = []
    for one in ("inplace", engine):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        search = Evolution(model, SEARCHES["low rank"], engine=one)
        records = search.evolve(Fitness(model, [(X, Y)], "neg-loss"), 4)
        assert [record.accepted for record in records[:2]] == [True, True]
        found.append([score for record in records for score in (record.parent, *record.scores)])
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def averaged(kind: str, model: nn.Module) -> AveragedModel:
    if kind == "ema":
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    return AveragedModel(model, use_buffers=kind == "buffers")


@pytest.mark.parametrize("engine", ["prefix", "vmap", "auto"])
@pytest.mark.parametrize("kind", ["swa", "ema", "buffers"])
def test_averaged_models(kind: str, engine: str) -> None:
    found = []
    for one in ("inplace", engine):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        average = averaged(kind, model)
        average.update_parameters(model)
        search = Evolution(average, OpenAIES(0.1, population=4), space=Only("3.*"), engine=one)
        fitness = Fitness(average, [(X, Y)], "neg-loss")
        records = search.evolve(fitness, 2)
        with torch.no_grad():
            model[0].weight.add_(1.0)
        average.update_parameters(model)  # the prefix is another one now
        records += search.evolve(fitness, 2)
        found.append([score for record in records for score in (record.parent, *record.scores)])
        assert int(average.n_averaged) == 2
    assert found[1] == pytest.approx(found[0], abs=1e-5)
