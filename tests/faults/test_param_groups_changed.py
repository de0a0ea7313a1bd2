"""Parameters that are replaced, appended or removed after the optimizer was made."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from evostep import (
    SNES,
    Always,
    Evolution,
    Evolved,
    Fitness,
    OpenAIES,
    RandomMutation,
    Span,
)

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
ES = OpenAIES(0.02, lr=0.004, population=4)
ABSOLUTE = RandomMutation(0.3, population=8, scale="absolute")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def fitness_of(model: nn.Module) -> Fitness:
    return Fitness(model, [(X, Y)], "neg-loss")


def test_a_parameter_that_was_replaced_in_a_group_evolves() -> None:
    old, new = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))
    base = torch.optim.SGD([old], lr=0.1)
    optimizer = Evolved(base, ABSOLUTE)
    base.param_groups[0]["params"][0] = new
    records = optimizer.evolve(lambda: -float(new.square().sum()), 5)
    assert not torch.equal(new, torch.ones(5))
    assert torch.equal(old, torch.ones(3))
    assert len(set(records[0].scores)) == 8


def test_a_group_that_was_appended_evolves_with_its_own_sigma() -> None:
    one, two, three = (nn.Parameter(torch.ones(n)) for n in (3, 2, 4))
    base = torch.optim.SGD([one], lr=0.1)
    optimizer = Evolved(base, ABSOLUTE)
    optimizer.evolve(lambda: -float(one.square().sum()))
    for parameter, sigma in ((two, 0.3), (three, 0.0)):
        base.param_groups.append({**base.param_groups[0], "params": [parameter], "sigma": sigma})
    optimizer.evolve(lambda: -float(two.square().sum()), 3)
    assert not torch.equal(two, torch.ones(2))
    assert torch.equal(three, torch.ones(4))


def test_a_parameter_that_was_removed_stands_still() -> None:
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    base = torch.optim.SGD([one, two], lr=0.1)
    optimizer = Evolved(base, ABSOLUTE, accept=Always())
    del base.param_groups[0]["params"][1]
    optimizer.evolve(lambda: 0.0, 2)
    assert torch.equal(two, torch.ones(2))


@pytest.mark.parametrize("strategy", [ES, SNES(0.05, population=4)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("classes", [3, 5])
def test_a_head_that_was_replaced_in_a_model_evolves(classes: int, strategy: Any) -> None:
    model = mlp()
    search = Evolution(model, strategy, accept=Always())
    search.evolve(fitness_of(model))
    model[2] = nn.Linear(8, classes)
    before = model[2].weight.clone()
    search.evolve(fitness_of(model), 2)
    assert not torch.equal(before, model[2].weight)


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("when", ["before the first phase", "between two"])
def test_a_head_that_the_optimizer_does_not_know_is_named_once(when: str, classes: int) -> None:
    model = mlp()
    optimizer = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), ES, accept=Always())
    if when == "between two":
        optimizer.evolve(fitness_of(model))
    old, body = model[2].weight, model[0].weight.clone()
    kept = old.detach().clone()
    model[2] = nn.Linear(8, classes)
    head = model[2].weight.clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            optimizer.evolve(fitness_of(model))
    (text,) = [str(one.message) for one in caught]
    assert "does not move" in text
    assert "'2.weight', which the optimizer lacks" in text
    assert "\n" not in text
    assert torch.equal(old, kept)  # a dead tensor
    assert torch.equal(head, model[2].weight)  # as gradients would leave it
    assert not torch.equal(body, model[0].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({"params": list(model[2].parameters())})
        optimizer.evolve(fitness_of(model))
    assert not torch.equal(head, model[2].weight)


def by_layers(model: nn.Sequential, *, named: bool) -> list[dict[str, Any]]:
    return [
        {"params": list(part.named_parameters(prefix=name) if named else part.parameters())}
        for name, part in (("0", model[0]), ("2", model[2]))
    ]


BASES: dict[str, Callable[[nn.Sequential], Any]] = {
    "unnamed": lambda model: model.parameters(),
    "named": lambda model: model.named_parameters(),
    "unnamed groups": lambda model: by_layers(model, named=False),
    "named groups": lambda model: by_layers(model, named=True),
}
ADDED: dict[str, Callable[[nn.Module], Any]] = {
    "a generator": lambda layer: layer.parameters(),
    "named": lambda layer: layer.named_parameters(),
    "named as the old one": lambda layer: list(layer.named_parameters(prefix="2")),
}


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("base", BASES)
def test_the_advice_about_a_replaced_layer_works(base: str, added: str, with_model: bool) -> None:
    model = mlp()
    optimizer = Evolved(
        torch.optim.SGD(BASES[base](model), lr=0.1),
        ES,
        accept=Always(),
        model=model if with_model else None,
    )
    model[2] = nn.Linear(8, 5)
    with pytest.warns(UserWarning, match=r"pass it to add_param_group\(\)"):
        optimizer.evolve(fitness_of(model))
    before = model[2].weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({"params": ADDED[added](model[2])})
        optimizer.evolve(fitness_of(model))
    assert not torch.equal(before, model[2].weight)
    torch.nn.functional.cross_entropy(model(X), Y).backward()
    stepped = model[2].weight.clone()
    optimizer.step()
    assert not torch.equal(stepped, model[2].weight)
    copy.deepcopy(optimizer).state_dict()


def test_a_group_that_torch_refuses_is_refused_by_torch() -> None:
    optimizer = Evolved(torch.optim.SGD(mlp().parameters(), lr=0.1), ES)
    with pytest.raises(TypeError, match="ordered collections"):
        optimizer.add_param_group({"params": set(mlp().parameters())})


def test_names_stay_when_a_state_gave_them() -> None:
    """Positions are renamed by a saved state; looking again does not take the names away."""
    w = nn.Parameter(torch.ones(3))
    saved = Evolved(torch.optim.SGD([("w", w)], lr=0.1), ABSOLUTE)
    saved.evolve(lambda: -float(w.square().sum()))
    optimizer = Evolved(torch.optim.SGD([w], lr=0.1), ABSOLUTE)
    optimizer.load_state_dict(saved.state_dict())
    optimizer.evolve(lambda: -float(w.square().sum()))
    assert list(optimizer.evolution.slots.tensors) == ["w"]


def test_checkpoints_of_a_replaced_layer_are_forgotten_with_a_warning() -> None:
    model = mlp()
    search = Evolution(model, RandomMutation(0.3, population=4), space=Span())
    search.remember()
    model[2] = nn.Linear(8, 3)
    with pytest.warns(UserWarning, match="the 1 checkpoints remembered before are forgotten"):
        search.remember()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    search.evolve(fitness_of(model))


def test_a_group_that_is_refused_is_not_added() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = Evolved(torch.optim.SGD(model.named_parameters(), lr=0.1), OpenAIES(0.02))
    model[2] = nn.Linear(8, 3)
    with pytest.raises(ValueError, match="two parameters of the optimizer are called"):
        optimizer.add_param_group({"params": list(model[2].named_parameters(prefix="2"))})
    assert len(optimizer.param_groups) == 1
