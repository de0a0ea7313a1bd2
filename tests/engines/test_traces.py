"""Whatever is raised, wherever, by whichever engine: the model and the streams are as before."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evostep import Evolution, Fitness, LowRank, Only, RandomMutation
from evostep.engines import ENGINES
from evostep.engines.lowrank import SharedProduct
from evostep.engines.vmap import Vmap

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
BATCHES = [(X[:24], Y[:24]), (X[24:], Y[24:])]
ENGINES: dict[str, Any] = {
    **{name: name for name in ENGINES},
    "vmap in chunks": Vmap(chunk=2),
    "lowrank in chunks": SharedProduct(chunk=2),
}
CALLS = [1, 2, 3, 5, 8, 11, 14]
# of the head, in two generations, at least: once for each batch of the parent and of each chunk
FORWARDS = {"vmap": 10, "lowrank": 10, "vmap in chunks": 18, "lowrank in chunks": 18}


class Network(nn.Module):
    """A weight in two modules, a module in two places, statistics, dropout, a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.middle = nn.Linear(6, 6)
        self.again = self.middle
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.middle.weight
        self.head = nn.Linear(6, 3)
        self.register_buffer("shift", torch.full((3,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.first(x)))
        out: Tensor = self.head(self.tied(self.again(self.middle(x))).tanh()) + self.shift
        return out


def network() -> Network:
    torch.manual_seed(5)
    model = Network().train()
    with torch.no_grad():
        model(X)
    model.norm.eval()
    model.first.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model


def trace(model: nn.Module) -> dict[str, Any]:
    """All that scoring must not change; numbers as lists, so that they compare to the bit."""
    tensors = [
        (path, key, held[key])
        for path, module in model.named_modules(remove_duplicate=False)
        for held in (module._parameters, module._buffers)
        for key in held
    ]
    return {
        "names": [(path, key) for path, key, _ in tensors],
        "values": [t.tolist() for _, _, t in tensors if t is not None],
        "objects": [(id(t), type(t)) for _, _, t in tensors],
        "addresses": [t.data_ptr() for _, _, t in tensors if t is not None],
        "requires_grad": [t.requires_grad for _, _, t in tensors if t is not None],
        "grads": [p.grad.tolist() if p.grad is not None else None for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [
            (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
            for m in model.modules()
        ],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


class Bomb:
    """Draws from every stream, and raises at one of its calls."""

    def __init__(self, call: int, error: BaseException | None) -> None:
        self.call, self.error, self.calls = call, error, 0

    def tick(self) -> None:
        self.calls += 1
        torch.rand(3), random.random(), np.random.rand()
        if self.calls == self.call and self.error is not None:
            raise self.error


def in_the_metric(model: Network, bomb: Bomb) -> Fitness:
    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        bomb.tick()
        return torch.zeros(len(targets))  # nothing is better

    return Fitness(model, BATCHES, metric)


def in_the_forward(model: Network, bomb: Bomb) -> Fitness:
    model.head.register_forward_hook(lambda *_: bomb.tick())
    return Fitness(model, BATCHES, lambda outputs, targets: torch.zeros(len(targets)))


def evolve(engine: str, place: Callable[[Network, Bomb], Fitness], bomb: Bomb) -> list[str]:
    """Two generations of which nothing is accepted; give what was warned of."""
    model = network()
    fitness = place(model, bomb)
    strategy = RandomMutation(0.5, population=6, noise=LowRank(1))
    space = Only("middle", "tied", "head")
    before = trace(model)
    search = Evolution(model, strategy, space=space, engine=ENGINES[engine], seed=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress(KeyboardInterrupt, SystemExit, ValueError):
            search.evolve(fitness, 2)
    after = trace(model)
    for key, value in before.items():
        assert value == after[key], key
    return [str(one.message) for one in caught if str(one.message).startswith("engine")]


PLACES = [in_the_metric, in_the_forward]
ERRORS = [KeyboardInterrupt(), SystemExit(), ValueError("no")]
# Every engine stops at every call in either place; the errors take turns.
STOPS = [
    pytest.param(
        engine,
        place,
        call,
        error := ERRORS[(i + j + k) % 3],
        id=f"{engine}-{place.__name__}-{call}-{error!r}",
    )
    for i, engine in enumerate(ENGINES)
    for j, place in enumerate(PLACES)
    for k, call in enumerate(CALLS)
]


@pytest.mark.parametrize(("engine", "place", "call", "error"), STOPS)
def test_no_trace_stays_wherever_it_stops(
    engine: str, place: Callable[[Network, Bomb], Fitness], call: int, error: BaseException
) -> None:
    bomb = Bomb(call, error)
    evolve(engine, place, bomb)
    if place is in_the_metric or call <= FORWARDS.get(engine, 28):
        assert bomb.calls >= call, "it went off"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_takes_this_model_where_nothing_is_raised(
    engine: str, place: Callable[[Network, Bomb], Fitness]
) -> None:
    """Else the test above would be of scoring in place alone."""
    bomb = Bomb(0, None)
    told = evolve(engine, place, bomb)
    if engine == "workers":  # a metric of one's own may not be called twice at the same time
        assert [text for text in told if "engine 'workers' cannot score" not in text] == []
        return
    assert told == []
    assert bomb.calls >= (14 if place is in_the_metric else FORWARDS.get(engine, 28))
