"""What is done to the weights within `evolve` would be undone: an error says where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evostep import (
    AllWeights,
    Evolution,
    Evolved,
    Fitness,
    Only,
    OpenAIES,
    PairedTest,
    RandomMutation,
    Span,
)

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
ES = OpenAIES(0.02, lr=0.004, population=4)


def make(**options: Any) -> tuple[nn.Sequential, Evolved, Fitness]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = Evolved(base, ES, model=model, **options)
    return model, optimizer, Fitness(model, [(X, Y)], "neg-loss")


def backward(model: nn.Module) -> None:
    F.cross_entropy(model(X), Y).backward()


@torch.no_grad()
def by_data(model: nn.Sequential, optimizer: Evolved) -> None:
    model[0].weight.data.add_(0.1)  # not seen by torch's counter of versions


@torch.no_grad()
def in_place(model: nn.Sequential, optimizer: Evolved) -> None:
    model[2].bias.add_(0.1)


def fused(model: nn.Sequential, optimizer: Evolved) -> None:
    torch.optim.Adam(model.parameters(), fused=True).step()


WITHIN: dict[str, tuple[Callable[[nn.Sequential, Evolved], object], str]] = {
    "its step": (lambda model, optimizer: optimizer.step(), "a gradient step within evolve"),
    "its base's step": (lambda _, optimizer: optimizer.base.step(), "a gradient step within"),
    "a scaler's step": (
        lambda _, optimizer: torch.amp.GradScaler("cpu", enabled=False).step(optimizer),
        "a gradient step within",
    ),
    "another optimizer's": (fused, "weights were changed within evolve"),
    "by hand": (in_place, "weights were changed within evolve"),
    "by data": (by_data, "weights were changed within evolve"),
    "the model's state": (
        lambda model, _: model.load_state_dict(nn.Sequential(*map(type_of, model)).state_dict()),
        "weights were changed within evolve",
    ),
    "its state": (
        lambda _, optimizer: optimizer.load_state_dict(optimizer.state_dict()),
        "loading a state within evolve",
    ),
    "evolution's state": (
        lambda _, o: o.evolution.load_state_dict(o.evolution.state_dict()),
        "loading a state within evolve",
    ),
    "evolve": (
        lambda _, optimizer: optimizer.evolve(lambda: 0.0),
        "evolve within evolve",
    ),
}


def type_of(layer: nn.Module) -> nn.Module:
    return nn.Linear(*layer.weight.shape[::-1]) if isinstance(layer, nn.Linear) else nn.ReLU()


@pytest.mark.parametrize("name", WITHIN)
def test_is_refused_with_the_place_where_it_belongs(name: str) -> None:
    act, words = WITHIN[name]
    model, optimizer, fitness = make()
    centers = []

    def on_generation(record: Any) -> None:
        centers.append([p.detach().clone() for p in model.parameters()])
        backward(model)
        act(model, optimizer)

    with pytest.raises(ValueError, match=f"{words}.*: .*between calls of evolve"):
        optimizer.evolve(fitness, 3, on_generation=on_generation)
    assert len(centers) == 1
    for p, center in zip(model.parameters(), centers[0], strict=True):
        assert torch.equal(p, center), "the weights are the center's"
    optimizer.evolve(fitness, 1)  # and it goes on
    backward(model)
    optimizer.step()


@pytest.mark.parametrize("space", [AllWeights(), Only("2.*"), Span()], ids=["all", "only", "span"])
@pytest.mark.parametrize("rule", [None, PairedTest()], ids=["each generation", "the phase"])
def test_what_only_looks_is_let(space: Any, rule: Any) -> None:
    model, optimizer, _ = make(space=space, accept=rule)
    fitness = Fitness(model, [(X, Y)], "accuracy")
    other = Fitness(model, [(X[:30], Y[:30])], "accuracy")
    for _ in range(3):
        backward(model)
        optimizer.step()
        if isinstance(space, Span):
            optimizer.remember()

    def look(record: Any) -> None:
        fitness()
        other()
        model(X)
        optimizer.state_dict()
        backward(model)
        optimizer.zero_grad()
        second = Evolution(model, RandomMutation(0.1, population=2))
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        second.evolve(lambda: 0.0)  # tries members, and puts the weights back
        assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())

    optimizer.evolve(fitness, 2, accept_on=other, on_generation=look)


def test_on_move_is_no_place_either() -> None:
    w = torch.tensor([3.0, -2.0])
    search = Evolution({"w": w}, RandomMutation(0.3, population=8, scale="absolute"))
    with pytest.raises(ValueError, match="weights were changed within evolve"):
        search.evolve(lambda: -float(w.square().sum()), 9, on_move=lambda: w.add_(1.0))


def test_attributes_that_a_callback_sets_on_the_model_stay() -> None:
    model, optimizer, fitness = make()
    model.seen = []  # type: ignore[assignment]
    model.last = None  # type: ignore[assignment]

    def note(record: Any) -> None:
        model.seen.append(record.generation)  # type: ignore[operator]
        model.last = record.generation  # type: ignore[assignment]

    optimizer.evolve(fitness, 3, on_generation=note)
    assert model.seen == [0, 1, 2]
    assert model.last == 2
