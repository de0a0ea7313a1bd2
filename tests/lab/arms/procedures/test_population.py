"""ESGD as an arm: what its individuals see in an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evostep.lab.arms.precedence import make_arms
from evostep.lab.arms.procedures.base import Learner
from evostep.lab.arms.procedures.population import Population
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.data.parts import Parts, Sizes
from evostep.lab.options import Options
from evostep.lab.storage import History

OPTIONS = Options(
    model="mlp", arms="esgd", epochs=4, evolve_from=0, generations=1, augment="shift", lr=0.1
)
SIZES = Sizes(train=100, fitness=40, accept=20, test=50, classes=10)


def population_of(parts: Parts, directory: Path) -> Population:
    directory.mkdir(exist_ok=True)
    history = History(directory / "history.jsonl")
    seed_run = SeedRun(OPTIONS, 3, parts, SIZES, torch.device("cpu"), directory, history)
    (arm,) = make_arms(OPTIONS)
    return Population(seed_run, arm, Learner(seed_run, arm.training).state())


def weights_after(population: Population, epochs: int, draws: int = 0) -> list[torch.Tensor]:
    """Train for some epochs, with draws from the global stream in every individual's epoch."""
    train, counters = population._train, Counters()

    def disturbed(*args: Any) -> Any:
        torch.rand(draws)
        return train(*args)

    population._train = disturbed  # type: ignore[method-assign]
    for _ in range(epochs):
        population.epoch(counters, None)
    return [
        torch.cat([p.detach().flatten() for p in one.model.parameters()])
        for one in population.esgd.individuals
    ]


def test_draws_from_the_global_stream_change_nothing(parts: Parts, tmp_path: Path) -> None:
    one = weights_after(population_of(parts, tmp_path / "one"), 2)
    torch.manual_seed(99)
    other = weights_after(population_of(parts, tmp_path / "other"), 2, draws=7)
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours, theirs)


def test_what_an_individual_sees_follows_from_seed_epoch_and_individual(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = population_of(parts, tmp_path)
    seen: list[torch.Tensor] = []
    for model in population.models:
        model.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].clone()) if module.training else None
        )
    firsts = []
    for epoch in range(2):
        for individual in population.esgd.individuals:
            seen.clear()
            population._train(individual.model, individual.optimizer, epoch)
            firsts.append(seen[0])
    for i, images in enumerate(firsts):
        assert not any(torch.equal(images, other) for other in firsts[:i])
    seen.clear()
    again = population.esgd.individuals[2]
    population._train(again.model, again.optimizer, 1)
    assert torch.equal(seen[0], firsts[4 + 2])
