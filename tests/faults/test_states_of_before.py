"""States that other processes saved, with other versions of torch and evostep, are gone on with.

`states/` holds what ``python tests/faults/test_states_of_before.py`` wrote when a format was new,
with the versions it was written by; each stays as it is. What comes of it is compared to 1e-5, for
other versions of torch round otherwise.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evostep import ESGD, SNES, Evolved, Fitness, OpenAIES, RandomMutation, Species, __version__

STATES = Path(__file__).parent / "states"
NEW = STATES / "format-1.pt"
STRATEGIES = {
    "adam-es": lambda: OpenAIES(sigma=0.05, lr=0.05, population=6, optimizer="Adam"),
    "snes": lambda: SNES(sigma=0.05, population=6),
    "mutation": lambda: RandomMutation(sigma=0.05, population=6),
}


def examples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    grid = torch.linspace(-1, 1, 24)
    inputs = torch.stack([grid, grid.square(), (3 * grid).sin()], 1)
    return [(inputs, (inputs.sum(1) > 0.5).long())]


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-0.7, 0.9, parameter.numel()).view_as(parameter))
    return model


def evolved(name: str) -> tuple[nn.Module, Evolved]:
    model = network()
    base = torch.optim.AdamW(model.named_parameters(), lr=0.01)
    return model, Evolved(base, STRATEGIES[name](), model=model, seed=3)


def go(model: nn.Module, optimizer: Evolved) -> None:
    """Take two steps of the gradient and two of evolution."""
    ((inputs, targets),) = examples()
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    model.eval()
    optimizer.evolve(Fitness(model, examples(), "neg-loss"), 2)
    model.train()


def population() -> ESGD:
    species = Species(torch.optim.SGD, lr=(0.01, 0.1, "log"), momentum=0.9)
    models = [network() for _ in range(3)]
    fitness = Fitness(models[0], examples(), "neg-loss")
    pairs = [(model, species) for model in models]
    return ESGD(pairs, fitness, offspring=4, parents=2, elite=1, sigma=0.05, seed=3)


def breed(esgd: ESGD) -> None:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        ((inputs, targets),) = examples()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        return len(targets)

    esgd.descend(train)
    esgd.evolve(2)


def weights(*models: nn.Module) -> list[dict[str, Any]]:
    return [copy.deepcopy(model.state_dict()) for model in models]


def make() -> dict[str, Any]:
    """Return states, and what came of them."""
    made: dict[str, Any] = {"evostep": __version__, "torch": str(torch.__version__)}
    for name in STRATEGIES:
        model, optimizer = evolved(name)
        go(model, optimizer)
        made[name] = {
            "model": weights(model),
            "state": copy.deepcopy(optimizer.state_dict()),
        }
        go(model, optimizer)
        made[name]["after"] = weights(model)
    esgd = population()
    breed(esgd)
    made["esgd"] = {"state": copy.deepcopy(esgd.state_dict())}
    breed(esgd)
    made["esgd"]["after"] = weights(*(one.model for one in esgd.individuals))
    return made


def assert_close(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", sorted(STATES.glob("*.pt")), ids=lambda path: path.stem)
@pytest.mark.parametrize("name", [*STRATEGIES, "esgd"])
def test_a_state_of_before_is_gone_on_with(name: str, path: Path) -> None:
    kept = torch.load(path, map_location="cpu", weights_only=True)[name]
    if name == "esgd":
        esgd = population()
        esgd.load_state_dict(kept["state"])
        breed(esgd)
        assert_close(weights(*(one.model for one in esgd.individuals)), kept["after"])
        return
    model, optimizer = evolved(name)
    model.load_state_dict(kept["model"][0])
    optimizer.load_state_dict(kept["state"])
    go(model, optimizer)
    assert_close(weights(model), kept["after"])
    moved = [
        key for key, value in kept["after"][0].items() if not value.equal(kept["model"][0][key])
    ]
    assert {"0.weight", "3.bias"} <= set(moved)


def test_the_file_has_the_format_of_today() -> None:
    kept = torch.load(NEW, map_location="cpu", weights_only=True)
    for name in STRATEGIES:
        own = evolved(name)[1].state_dict()["evolution"]
        assert own["format"] == kept[name]["state"]["evolution"]["format"]
    assert population().state_dict()["format"] == kept["esgd"]["state"]["format"]


def test_a_population_of_a_later_format_is_refused_by_its_number() -> None:
    esgd = population()
    state = copy.deepcopy(esgd.state_dict())
    with pytest.raises(ValueError, match="has the format 2, this version of evostep reads 1"):
        esgd.load_state_dict({**state, "format": 2})
    del state["format"]  # as older versions saved it
    esgd.load_state_dict(state)


if __name__ == "__main__":
    if NEW.exists():
        sys.exit(f"{NEW} is there, and stays as it is: give a new format a new name")
    STATES.mkdir(exist_ok=True)
    torch.save(make(), NEW)
