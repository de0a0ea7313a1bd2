"""Weights of 16 bits: a sigma below their precision is told, a finer center is kept on request."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from evostep import (
    SNES,
    AllWeights,
    Always,
    Evolution,
    Evolved,
    Fitness,
    Improves,
    Only,
    OpenAIES,
    RandomMutation,
)

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
FINE = AllWeights(precision="float32")


def network(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def fitness_of(model: nn.Module) -> Fitness:
    dtype = next(model.parameters()).dtype
    return Fitness(model, [(X.to(dtype), Y)], "neg-loss")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("evolved", [False, True])
def test_a_sigma_below_the_precision_is_told_once_with_the_share(
    dtype: torch.dtype, evolved: bool
) -> None:
    model = network(dtype)
    fitness = fitness_of(model)
    sigma = 0.001 if dtype == torch.bfloat16 else 0.0001
    strategy = RandomMutation(sigma, population=2)
    search: Any = Evolution(model, strategy)
    if evolved:
        search = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), strategy)
    kind = str(dtype).removeprefix("torch.")
    with pytest.warns(UserWarning, match=rf"changes \d+% of the {kind} weights") as caught:
        search.evolve(fitness)
    share = int(str(caught[0].message).partition("%")[0].rpartition(" ")[2])
    before = [p.detach().clone() for p in model.parameters()]
    # what it says is what another member changes
    with torch.no_grad():
        moved = [
            (p + sigma * p.float().square().mean().sqrt().clamp(min=0.01) * torch.randn(p.shape))
            .to(dtype)
            .ne(b)
            for p, b in zip(model.parameters(), before, strict=True)
        ]
    expected = torch.cat([m.flatten() for m in moved]).double().mean()
    assert share / 100 == pytest.approx(float(expected), abs=0.15)
    search.evolve(fitness)
    assert len(caught) == 1


@pytest.mark.parametrize("case", ["large sigma", "float32", "finer center", "resumed twice"])
def test_nothing_is_told_where_weights_move(case: str, recwarn: pytest.WarningsRecorder) -> None:
    model = network(torch.float32 if case == "float32" else torch.bfloat16)
    sigma = 0.05 if case in ("large sigma", "resumed twice") else 0.001
    space = FINE if case == "finer center" else AllWeights()
    Evolution(model, RandomMutation(sigma, population=2), space=space).evolve(fitness_of(model))
    assert not recwarn.list


def test_steps_below_the_precision_add_up_in_a_finer_center() -> None:
    def distance(space: AllWeights) -> float:
        w = torch.ones(64, dtype=torch.bfloat16)
        strategy = OpenAIES(0.01, lr=5e-6, population=8, scale="absolute", shaping="z-score")
        search = Evolution({"w": w}, strategy, space=space, accept=Always())
        search.evolve(lambda: -float(w.double().square().sum()), 80)
        return float((w.double() - 1).mean())

    assert abs(distance(AllWeights())) < 1e-3  # each step is rounded away
    assert distance(FINE) < -0.003


@pytest.mark.parametrize(
    "strategy", [OpenAIES(0.02, lr=0.001, population=4), SNES(0.02, population=4)]
)
@pytest.mark.parametrize("rule", [Always(), Improves()], ids=lambda r: type(r).__name__)
def test_a_finer_center_is_kept_and_resumed_to_the_bit(strategy: Any, rule: Any) -> None:
    def start() -> tuple[nn.Module, Evolution]:
        model = network()
        return model, Evolution(model, strategy, space=FINE, accept=rule)

    whole, never_stopped = start()
    for _ in range(3):
        never_stopped.evolve(fitness_of(whole), 2)
    model, search = start()
    for _ in range(3):
        search.evolve(fitness_of(model), 2)
        file = io.BytesIO()
        torch.save((model.state_dict(), search.state_dict()), file)
        weights, state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        model, search = start()
        model.load_state_dict(weights)
        search.load_state_dict(state)
    assert all(
        torch.equal(p, q) for p, q in zip(whole.parameters(), model.parameters(), strict=True)
    )
    for name, z in search.state_dict()["center"].items():
        assert z.dtype == torch.float32
        assert torch.equal(z.bfloat16(), dict(model.named_parameters())[name])
        assert torch.equal(z, never_stopped.state_dict()["center"][name])


def test_gradient_steps_move_a_finer_center() -> None:
    model = network()
    search = Evolution(model, OpenAIES(0.02, lr=0.001, population=4), space=FINE, accept=Always())
    search.evolve(fitness_of(model), 2)
    kept = search.state_dict()["center"]["0.weight"]
    with torch.no_grad():
        model[0].weight[0] += 1.0
    search.evolve(fitness_of(model), 1)
    new = search.state_dict()["center"]["0.weight"]
    assert (new[0] - kept[0]).abs().min() > 0.9
    assert (new[1:] - kept[1:]).abs().max() < 0.1


@pytest.mark.parametrize("engine", ["inplace", "vmap"])
def test_antithetic_members_of_a_finer_center(engine: str) -> None:
    found = []
    for name in ("inplace", engine):
        model = network()
        strategy = OpenAIES(0.05, lr=0.01, population=8)
        search = Evolution(model, strategy, space=FINE, accept=Always(), engine=name)
        found.append([r.scores for r in search.evolve(fitness_of(model), 2)])
    assert found[0][0] == pytest.approx(found[1][0], abs=2e-2)
    assert found[0][0] == found[1][0] or engine == "vmap"


def test_an_unknown_precision_is_refused() -> None:
    for make in (AllWeights, lambda **kwargs: Only("head", **kwargs)):
        with pytest.raises(ValueError, match="precision must be one of weights, float32, got 'x'"):
            make(precision="x")
    assert repr(Only("head", precision="float32")) == "Only('head', precision='float32')"
