"""What a forward keeps on a module is put back, whatever the engine; derived weights are right."""

from __future__ import annotations

import copy
import io
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune, spectral_norm, weight_norm

from evostep import ESGD, Always, Evolution, Fitness, OpenAIES, RandomMutation
from evostep.scoring.attributes import Attributes

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
BATCHES = [(X[:20], Y[:20]), (X[20:40], Y[20:40]), (X[40:], Y[40:])]
ES = OpenAIES(0.05, lr=0.02, population=4)
ENGINES = ("inplace", "vmap", "prefix", "racing")


@dataclass
class Memory:
    h: Tensor = field(default_factory=lambda: torch.zeros(20, 8))


class Keeps(nn.Module):
    """Keeps something on itself in its forward, in one of many ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.features: Any = None
        self.calls, self.names = 0, ["a"]
        self.seen: list[Any] = []
        self.cache: dict[str, Any] = {"deep": [torch.zeros(2)]}
        self.last: deque[Any] = deque(maxlen=2)
        self.record = Memory()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x).relu()
        if self.way == "attribute":
            self.features = features
        elif self.way == "new attribute":
            self.fresh = features
        elif self.way == "list":
            self.seen.append(features)
        elif self.way == "dictionary":
            self.cache["features"] = features
            self.cache["deep"][0] = features
        elif self.way == "deque":
            self.last.append(features)
        elif self.way == "dataclass":
            self.record.h = features
        elif self.way == "counter":
            self.calls += 1
        elif self.way == "tuple":
            self.features = (features, {"again": features})
        elif self.way == "submodule":
            self.head.features = features  # type: ignore[assignment]
        elif self.way == "deleted":
            del self.names
            self.names = ["b"]
        return self.head(features)  # type: ignore[no-any-return]


WAYS = ("attribute", "new attribute", "list", "dictionary", "deque", "dataclass", "counter")
MORE = ("tuple", "submodule", "deleted")


def described(model: nn.Module) -> list[Any]:
    """Every plain attribute, with what is in it."""
    return [
        repr(sorted((k, v) for k, v in vars(m).items() if k[0] != "_")) for m in model.modules()
    ]


@pytest.mark.filterwarnings("ignore:engine")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_what_a_forward_keeps_is_put_back(way: str, engine: str) -> None:
    torch.manual_seed(0)
    model = Keeps(way)
    before = described(model)
    search = Evolution(model, RandomMutation(0.1, population=6), engine=engine)
    search.evolve(Fitness(model, BATCHES, "accuracy"), 2)
    assert described(model) == before
    copy.deepcopy(model)
    torch.save(model, io.BytesIO())


@pytest.mark.parametrize("way", MORE)
def test_in_other_ways_too(way: str) -> None:
    model = Keeps(way)
    before = described(model)
    Evolution(model, ES).evolve(Fitness(model, BATCHES, "accuracy"), 2)
    assert described(model) == before
    copy.deepcopy(model)


def test_scoring_by_hand_and_populations_leave_nothing_either() -> None:
    models = [Keeps("list") for _ in range(2)]
    before = [described(model) for model in models]
    Fitness(models[0], BATCHES, "accuracy")()
    species = [(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in models]
    fitness = Fitness(models[0], BATCHES, "accuracy")
    ESGD(species, fitness, offspring=2, parents=1, elite=1).evolve(2)
    assert [described(model) for model in models] == before


class Stateful(nn.Module):
    """Goes on from the hidden state that the last forward left."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(12, 8), nn.Linear(8, 3)
        self.in_place, self.h = in_place, torch.zeros(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.cell(torch.cat([x, self.h], 1)))
        if self.in_place:
            self.h.copy_(h)
        else:
            self.h = h
        return self.head(h)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:engine 'vmap' cannot:UserWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_hidden_state_is_the_members_own_in_every_engine(in_place: bool) -> None:
    scores = []
    for engine in ("inplace", "vmap", "auto"):
        torch.manual_seed(0)
        model = Stateful(in_place)
        search = Evolution(model, ES, engine=engine, seed=3)
        records = search.evolve(Fitness(model, BATCHES, "neg-loss"), 2)
        scores.append([(record.parent, record.scores) for record in records])
        assert not model.h.any()
        assert type(model.h) is Tensor
        copy.deepcopy(model)
    for parent, members in (record for one in scores[1:] for record in one):
        expected = next(s for s in scores[0] if s[0] == pytest.approx(parent, abs=1e-6))
        assert members == pytest.approx(expected[1], abs=1e-5)
        assert len(set(members)) > 1


def pruned() -> nn.Sequential:
    model = network()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def normed(norm: Callable[..., nn.Module]) -> nn.Sequential:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        norm(model[0])
    return model


DERIVED = {
    "pruned": pruned,
    "weight norm": lambda: normed(weight_norm),
    "spectral norm": lambda: normed(spectral_norm),
}


@pytest.mark.filterwarnings("ignore:engine")
@pytest.mark.parametrize("engine", ["inplace", "auto", "prefix"])
@pytest.mark.parametrize("name", DERIVED)
def test_derived_weights_are_the_centers_afterwards(name: str, engine: str) -> None:
    model = DERIVED[name]()
    model.eval()
    first = model[0].weight.detach().clone()
    search = Evolution(model, RandomMutation(0.1, population=4), accept=Always(), engine=engine)
    search.evolve(Fitness(model, [(X, Y)], "neg-loss"), 2)
    kept = model[0].weight
    assert not torch.equal(kept, first)
    copy.deepcopy(model)
    model(X)
    assert torch.equal(kept, model[0].weight)


@pytest.mark.parametrize("name", DERIVED)
def test_derived_weights_of_a_population_are_its_own(name: str) -> None:
    models = [DERIVED[name]().eval() for _ in range(2)]
    with torch.no_grad():
        models[1][2].bias.add_(1.0)
    species = [(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in models]
    fitness = Fitness(models[0], [(X, Y)], "neg-loss")
    records = ESGD(species, fitness, offspring=6, parents=1, elite=2, sigma=0.1).evolve(2)
    assert any(record.accepted for record in records)
    for model in models:
        kept = model[0].weight
        model(X)
        assert torch.equal(kept, model[0].weight)


def test_training_goes_on_with_derived_weights() -> None:
    model = DERIVED["weight norm"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        Evolution(model, ES).evolve(Fitness(model, [(X, Y)], "neg-loss"))
    assert model[0].weight_g.grad is not None


def test_a_cache_that_a_forward_makes_stays() -> None:
    """What is loaded once for all forwards is not loaded for each member."""

    class Session:
        made = 0

        def __init__(self) -> None:
            Session.made += 1

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.session: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.session = self.session or Session()
            return self.head(x)  # type: ignore[no-any-return]

    model = Lazy()
    Evolution(model, ES, engine="inplace").evolve(Fitness(model, BATCHES, "accuracy"), 2)
    assert Session.made == 1


def test_weights_that_an_attribute_names_again_are_left_alone() -> None:
    layer = nn.Linear(2, 1)
    layer.views = [layer.weight, layer.weight.data.view(-1)]  # type: ignore[assignment]
    kept = Attributes(layer)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    kept.restore()
    assert bool((layer.weight == 3.0).all())


def test_where_nothing_changed_nothing_is_written() -> None:
    model = Keeps("none")
    kept = Attributes(model)
    versions = [model.cache["deep"][0]._version, model.record.h._version]
    model(X)
    kept.restore()
    assert [model.cache["deep"][0]._version, model.record.h._version] == versions
