"""All members score as their parent does: one warning a phase, and nothing moves."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import (
    ESGD,
    Always,
    Evolution,
    Evolved,
    Fitness,
    Improves,
    OpenAIES,
    RandomMutation,
)
from evostep.strategies import STRATEGIES

X = torch.randn(256, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
FLAT = "members score .*exactly as the weights they come from"


class Constant(nn.Module):
    """Its forward does not use its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 2))
        self.other = torch.ones(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.other


def test_a_copy_that_is_scored() -> None:
    model = nn.Linear(5, 2)
    other = copy.deepcopy(model)
    search = Evolution(model, OpenAIES(0.05, lr=0.02, population=16))
    with pytest.warns(UserWarning, match=rf"all 16 {FLAT}.*not a copy") as found:
        search.evolve(lambda: float((other(X).argmax(1) == Y).float().mean()), 5)
    assert len(found) == 1, "one a phase"
    with pytest.warns(UserWarning, match=FLAT):
        search.evolve(lambda: float((other(X).argmax(1) == Y).float().mean()), 2)


@pytest.mark.parametrize("engine", ["inplace", "racing", "auto"])
@pytest.mark.filterwarnings("ignore:engine .* cannot score")
def test_weights_that_the_forward_does_not_use(engine: str) -> None:
    model = Constant()
    search = Evolution(model, RandomMutation(0.05, 8), engine=engine)
    with pytest.warns(UserWarning, match=rf"{FLAT}.*does the forward use"):
        search.evolve(Fitness(model, [(X, Y)]), 3)


def test_a_metric_that_tells_nothing() -> None:
    model = nn.Linear(5, 1)
    search = Evolution(model, OpenAIES(0.05, lr=0.02, population=16))
    with pytest.warns(UserWarning, match=f"{FLAT}.*does the metric fit"):
        search.evolve(Fitness(model, [(X, X[:, :1])], lambda *_: 0.25), 5)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("rule", [Always(), Improves(), Improves(every="phase")], ids=repr)
def test_no_strategy_drifts(name: str, rule: Any) -> None:
    model = nn.Linear(5, 2)
    before = copy.deepcopy(model.state_dict())
    strategy: Any = STRATEGIES[name](0.1)  # type: ignore[call-arg]
    strategy = dataclasses.replace(strategy, population=8)  # of two that agree nothing is told
    search = Evolution(model, strategy, accept=rule, engine="inplace")
    search.guide(dict(model.named_parameters()))
    with pytest.warns(UserWarning, match=FLAT):
        records = search.evolve(lambda: 0.5, 3)
    assert not any(record.moved for record in records)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_nothing_is_told_where_all_is_as_it_should_be() -> None:
    model = nn.Linear(5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # a perfect accuracy cannot be better
        with torch.no_grad():
            model.weight.zero_(), model.bias.zero_()
            model.weight[1, 0], model.weight[0, 0] = 9.0, -9.0
        far = X[X[:, 0].abs() > 0.5]
        fitness = Fitness(model, [(far, (far[:, 0] > 0).long())])
        Evolution(model, RandomMutation(0.001, 4)).evolve(fitness, 2)
        # members that differ
        Evolution(model, RandomMutation(0.5, 4)).evolve(Fitness(model, [(X, Y)], "neg-loss"), 2)
        # sigma 0: nothing is asked to move
        base = torch.optim.SGD([{"params": model.parameters(), "sigma": 0.0}], lr=0.1)
        one = Evolved(base, RandomMutation(0.1, 4), model=model)
        one.evolve(lambda: 0.5, 2)


def test_a_population_is_told_too() -> None:
    models = [nn.Linear(5, 2) for _ in range(3)]
    pairs = [(model, torch.optim.SGD(model.parameters(), 0.1)) for model in models]
    population = ESGD(pairs, lambda _: 0.5, 4, 2, 1)
    with pytest.warns(UserWarning, match="all 3 individuals and 4 offspring score 0.5") as found:
        population.evolve(3)
    assert len(found) == 1


@pytest.mark.parametrize("engine", ["inplace", "vmap", "auto"])
def test_an_engine_s_rounding_is_no_difference(engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5))
    batches = [(torch.randn(n, 5), torch.randint(5, (n,))) for n in (7, 7, 6)]
    search = Evolution(model, RandomMutation(1e-12, 4), engine=engine)
    with pytest.warns(UserWarning, match="all 4 members score"):
        records = search.evolve(Fitness(model, batches, "neg-loss"), 4)
    assert not any(record.accepted for record in records)
