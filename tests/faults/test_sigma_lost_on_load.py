"""A loaded state: groups keep their sigma; what is refused changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evostep import Evolved, Fitness, OpenAIES, RandomMutation, Span

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def make(strategy: Any = None, *sigmas: float | None, **options: Any) -> tuple[Any, Evolved]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    groups: list[dict[str, Any]] = []
    for layer, sigma in zip((model[0], model[2]), (*sigmas, None, None), strict=False):
        named = list(layer.named_parameters())
        groups.append({"params": [p for _, p in named]})
        if sigma is not None:
            groups[-1]["sigma"] = sigma
    base = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    strategy = strategy or RandomMutation(0.3, population=8)
    return model, Evolved(base, strategy, model=model, **options)


def train(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()


@pytest.mark.parametrize("state", ["bare", "evolved", "evolved with another"])
def test_a_groups_sigma(state: str) -> None:
    _, other = make(None, *([0.5] if state == "evolved with another" else []))
    model, optimizer = make(None, 0.0)
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    optimizer.load_state_dict((other.base if state == "bare" else other).state_dict())
    still, moving = model[0].weight.clone(), model[2].weight.clone()
    optimizer.evolve(fitness, 3)
    assert not torch.equal(moving, model[2].weight)
    if state == "evolved with another":
        assert optimizer.param_groups[0]["sigma"] == 0.5
    else:
        assert optimizer.param_groups[0]["sigma"] == 0.0
        assert torch.equal(still, model[0].weight)
    assert "sigma" not in optimizer.param_groups[1]


def spoiled(state: dict[str, Any], how: str) -> dict[str, Any]:
    state = copy.deepcopy(state)
    evolution = state["evolution"]
    if how == "another strategy":
        evolution["strategy"] = "SNES"
    elif how == "other names":
        evolution["names"] = ["a", "b", "c", "d"]
    elif how == "a missing key":
        del evolution["state"]
    elif how == "a number that is none":
        evolution["attempts"] = "many"
    elif how == "another format":
        evolution["format"] = 99
    elif how == "a broken memory":
        evolution["memory"] = {"count": 1}
    else:
        state["param_groups"] = state["param_groups"][:1]
    return state


REFUSED = (
    *("another strategy", "other names", "a missing key", "a number that is none"),
    *("another format", "a broken memory", "other groups"),
)


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_refused_changes_nothing(how: str) -> None:
    strategy = OpenAIES(0.1, lr=0.01, population=4)
    model, saver = make(strategy, space=Span())
    for _ in range(3):
        train(model, saver)
        saver.remember()
    saver.evolve(Fitness(model, [(X, Y)], "neg-loss"), 2)
    model, optimizer = make(strategy, space=Span())
    for _ in range(2):
        train(model, optimizer)
        optimizer.remember()
    optimizer.evolve(Fitness(model, [(X, Y)], "neg-loss"), 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises((ValueError, KeyError, TypeError)):
        optimizer.load_state_dict(spoiled(saver.state_dict(), how))
    after = optimizer.state_dict()
    assert repr(after) == repr(before)
    assert optimizer.evolution.generation == 1


def test_where_the_base_refuses_evolution_is_as_before() -> None:
    class Picky(torch.optim.SGD):
        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict(state_dict)
            raise RuntimeError("half of it")

    model = nn.Linear(4, 3)
    optimizer = Evolved(Picky(model.parameters(), lr=0.1), OpenAIES(0.1, lr=0.01, population=4))
    optimizer.evolve(Fitness(model, [(X, Y)], "neg-loss"), 2)
    state = copy.deepcopy(optimizer.state_dict())
    state["evolution"]["generation"], state["param_groups"][0]["lr"] = 9, 5.0
    with pytest.raises(RuntimeError, match="half of it"):
        optimizer.load_state_dict(state)
    assert optimizer.evolution.generation == 2
    assert optimizer.param_groups[0]["lr"] == 0.1
