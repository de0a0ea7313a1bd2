"""What holds on every device: the CPU here, a CUDA card where there is one (`-k cuda`)."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evostep
from evostep import Always, Evolution, Evolved, Fitness, LowRank, Only, OpenAIES, RandomMutation
from evostep.strategies import STRATEGIES

DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param(
        "cuda",
        id="cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    ),
]
ES = OpenAIES(0.05, lr=0.02, population=6)
CASES: dict[str, dict[str, Any]] = {
    "inplace": {"strategy": ES},
    "vmap": {"strategy": ES},
    "lowrank": {"strategy": OpenAIES(0.05, lr=0.02, population=6, noise=LowRank(1))},
    "prefix": {"strategy": ES, "space": Only("head")},
    "racing": {"strategy": RandomMutation(0.05, population=6)},
}


def network(device: str) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    return nn.Sequential(*layers).to(device).eval()


def batches(device: str) -> list[tuple[Tensor, Tensor]]:
    """On the device, or in host memory, from where they are moved."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(64, 1, 8, 8, generator=generator)
    labels = (images.mean((1, 2, 3)) * 8 + 2).clamp(0, 3).long()
    rows = list(zip(images.split(32), labels.split(32), strict=True))
    return [rows[0], (rows[1][0].to(device), rows[1][1].to(device))]


class Apart(nn.Module):
    """Two layers, of which the second is elsewhere."""

    def __init__(self, device: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.near, self.far = nn.Linear(16, 6), nn.Linear(6, 3).to(device)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.far(self.near(x).tanh().to(self.far.weight.device)).to(x.device)
        return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ["inplace", "vmap", "lowrank", "prefix", "racing", "auto"])
@pytest.mark.filterwarnings("ignore:engine .* cannot score these members")
def test_parameters_on_two_devices_evolve_where_they_are(engine: str, device: str) -> None:
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    strategies: list[Any] = [
        OpenAIES(0.05, lr=0.02, population=4, noise=LowRank(1)),
        RandomMutation(0.05, population=4),
        RandomMutation(0.05, population=4, scale="safe"),
        evostep.SNES(0.05, population=4),
        evostep.CMAES(0.05, population=4),
        evostep.GuidedES(0.05, lr=0.02, population=4),
    ]
    for strategy in strategies if engine == "inplace" else strategies[:2]:
        found = []
        for place in ("cpu", device):
            model = Apart(place)
            optimizer = Evolved(
                torch.optim.SGD(model.named_parameters(), 0.01, momentum=0.9),
                strategy,
                accept=Always(),
                engine=engine,
            )
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            records = optimizer.evolve(Fitness(model, [(x, y)], "neg-loss"), 2)
            assert [record.failed for record in records] == [0, 0]
            devices = [p.device.type for p in model.parameters()]
            assert devices == ["cpu", "cpu", place, place]
            found.append([p.detach().cpu() for p in model.parameters()])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_on_two_devices_is_polished_and_breeds(device: str) -> None:
    x = torch.randn(90, 16, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    for space in ("decision", "head"):
        model = Apart(device)
        result = evostep.polish(
            model, [(x, y)], "balanced-accuracy", space=space, folds=3, population=4, draws=100
        )
        result.revert()
        for one, other in zip(model.parameters(), Apart(device).parameters(), strict=True):
            assert torch.equal(one, other)
    models = [Apart(device) for _ in range(2)]
    made = [(model, torch.optim.SGD(model.parameters(), 0.1)) for model in models]
    population = evostep.ESGD(
        made, Fitness(made[0][0], [(x, y)], "neg-loss"), offspring=2, parents=2, elite=1, sigma=0.1
    )
    (record,) = population.evolve()
    assert all(map(math.isfinite, record.scores))


def evolved(device: str, engine: str, **options: Any) -> tuple[list[Tensor], list[float]]:
    """Return the weights, and the scores of all members, after two generations."""
    model = network(device)
    search = Evolution(model, engine=engine, accept=Always(), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="engine .* cannot score")
        records = search.evolve(Fitness(model, batches(device), "neg-loss"), 2)
    scores = [score for record in records for score in record.scores]
    return [p.detach().cpu() for p in model.parameters()], scores


@pytest.mark.parametrize("engine", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_every_engine_does_what_scoring_in_place_does(device: str, engine: str) -> None:
    fast, slow = (
        evolved(device, engine, **CASES[engine]),
        evolved(device, "inplace", **CASES[engine]),
    )
    for one, other in zip(fast[0], slow[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    start = list(network("cpu").parameters())
    assert any(not torch.equal(one, old) for one, old in zip(fast[0], start, strict=True))
    if engine != "racing":  # which does not score losers to the end
        assert fast[1] == pytest.approx(slow[1], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_gives_the_same_bits(device: str) -> None:
    def start() -> tuple[nn.Module, Evolved, Fitness]:
        model = network(device)
        base = torch.optim.Adam(model.named_parameters(), lr=0.01)
        optimizer = Evolved(base, ES, accept=Always(), model=model, engine="inplace")
        return model, optimizer, Fitness(model, batches(device), "neg-loss")

    def go(model: nn.Module, optimizer: Evolved, fitness: Fitness) -> None:
        inputs, targets = (part.to(device) for part in batches(device)[0])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.evolve(fitness, 2)

    whole, part, rest = start(), start(), start()
    go(*whole)
    go(*part)
    rest[0].load_state_dict(copy.deepcopy(part[0].state_dict()))
    rest[1].load_state_dict(copy.deepcopy(part[1].state_dict()))
    go(*whole)
    go(*rest)
    for one, other in zip(whole[0].parameters(), rest[0].parameters(), strict=True):
        assert one.device.type == device
        assert torch.equal(one, other)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_state_moves_between_devices(device: str, strategy: str, tmp_path: Path) -> None:
    """Through a file, to the CPU and back: the same bits as without."""

    def start() -> tuple[nn.Module, Evolved, Fitness]:
        model = network(device)
        base = torch.optim.SGD(model.named_parameters(), lr=0.01, momentum=0.9)
        made = STRATEGIES[strategy](sigma=0.05, population=6)  # type: ignore[call-arg]
        optimizer = Evolved(base, made, model=model, space=Only("head"), accept=Always())
        return model, optimizer, Fitness(model, batches(device), "neg-loss")

    def go(model: nn.Module, optimizer: Evolved, fitness: Fitness) -> None:
        inputs, targets = (part.to(device) for part in batches(device)[0])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.evolve(fitness, 2)

    whole, moved = start(), start()
    go(*whole)
    torch.save([whole[0].state_dict(), whole[1].state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    moved[0].load_state_dict(weights)
    moved[1].load_state_dict(state)
    go(*whole)
    go(*moved)
    for one, other in zip(whole[0].parameters(), moved[0].parameters(), strict=True):
        assert other.device.type == device
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_scores_nearly_alike(device: str) -> None:
    model = network(device)
    exact = Fitness(model, batches(device), "neg-loss")()
    rough = Fitness(model, batches(device), "neg-loss", autocast=torch.bfloat16)()
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_polishing_folds_into_the_layer_where_it_lies(device: str) -> None:
    inputs, labels = (
        torch.randn(300, 3, generator=torch.Generator().manual_seed(2)),
        torch.arange(300) % 3,
    )
    inputs = inputs + 1.5 * nn.functional.one_hot(labels, 3)
    model = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
    model.to(device)
    examples = [(inputs.to(device), labels.to(device))]
    budget = 7 * 3 * 8 * 4
    result = evostep.polish(
        model, examples, "worst-class-recall", folds=3, budget=budget, population=8, draws=300
    )
    assert result.applied
    assert model[0].bias.device.type == device
    decided = model(examples[0][0]).argmax(1).cpu()
    assert (
        decided.tolist()
        == (inputs + torch.tensor([2.0, 0, 0]) + result.decision.bias).argmax(1).tolist()
    )
