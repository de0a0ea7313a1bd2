"""The evaluator: the same for everyone, no trace, and each forward counted."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evostep import Fitness
from evostep.scoring.evaluator import Competition, Evaluator, Round
from evostep.scoring.isolation import ModuleState

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]
OTHERS = [(X[:7], Y[:7])]  # to calibrate on
ROUND = Round(seed=0, generation=0)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def rows_of(model: nn.Module) -> list[int]:
    """A list that receives how many examples each forward has, those that fail included."""
    rows: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    return rows


def opened(**options: Any) -> tuple[nn.Sequential, Evaluator, list[int]]:
    model = network()
    fitness = Fitness(model, BATCHES, "neg-loss", **options)
    return model, Evaluator(fitness, ModuleState(model)), rows_of(model)


# A round


def test_a_round_is_a_pure_function_of_seed_and_generation() -> None:
    _, evaluator, _ = opened(batches_per_generation=1)
    rounds = [evaluator.round(0, generation) for generation in (0, 1, 2, 3, 4, 5, 6, 7, 0)]
    assert rounds[0].examples is not None
    assert rounds[-1].examples is not None
    assert torch.equal(rounds[0].examples.batches[0][0], rounds[-1].examples.batches[0][0])
    assert rounds[0].seed_of("scoring") == rounds[-1].seed_of("scoring")
    assert {round.cost for round in rounds} == {12, 8}, "either batch has its turn"
    assert len({round.seed_of("scoring") for round in rounds}) == 8
    assert rounds[0].seed_of("scoring") != rounds[0].seed_of("calibration")


def test_a_round_is_frozen_and_carries_what_members_compete_for() -> None:
    _, evaluator, _ = opened()
    round = evaluator.round(0, 0, Competition(beats_parent=True))
    assert round.competition == Competition(beats_parent=True)
    assert evaluator.round(0, 0).competition is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        round.parent = evaluator.score(round)  # type: ignore[misc]


# The same for everyone


def test_every_scoring_of_a_generation_meets_the_same_random_numbers() -> None:
    seen: list[tuple[float, float, float]] = []

    def fitness() -> float:
        seen.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        return 0.0

    evaluator = Evaluator(fitness)
    for generation in (0, 0, 1, 0):
        evaluator.score(evaluator.round(5, generation))
    assert seen[0] == seen[1] == seen[3] != seen[2]


def test_a_fitness_that_draws_scores_the_same_weights_the_same() -> None:
    _, evaluator, _ = opened(mode="train")
    round = evaluator.round(0, 0)
    values = {evaluator.score(round).value, evaluator.attempt(round).value}
    assert len(values) == 1
    assert evaluator.score(evaluator.round(0, 1)).value not in values


# No trace


def test_scoring_puts_back_what_calibration_and_the_forward_changed() -> None:
    model, evaluator, _ = opened(mode="train", calibration=OTHERS)
    norm: Any = model[1]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    round = evaluator.round(0, 0)
    evaluator.calibrate(round)
    assert not torch.equal(norm.running_mean, before["1.running_mean"])
    evaluator.score(round)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.training


# Failures


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_failure(value: float) -> None:
    found = Evaluator(lambda: value).attempt(ROUND)
    assert found.failed
    assert math.isnan(found.value)
    assert found.error == f"the fitness was {value}"


def broken(error: type[BaseException]) -> Any:
    def fitness() -> float:
        raise error("too hot")

    return fitness


def test_an_error_is_a_failure_of_weights_that_are_proposed_and_says_why() -> None:
    evaluator = Evaluator(broken(ArithmeticError))
    found = evaluator.attempt(ROUND)
    assert found.failed
    assert found.error == "ArithmeticError: too hot"
    with pytest.raises(ArithmeticError, match="too hot"):
        evaluator.score(ROUND)


def test_an_interrupt_is_no_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        Evaluator(broken(KeyboardInterrupt)).attempt(ROUND)


# What is counted


def test_what_is_spent_is_what_went_forward() -> None:
    _, evaluator, rows = opened(calibration=OTHERS)
    round = evaluator.round(0, 0)
    assert evaluator.spent == 0, "to look at the examples costs nothing"
    spent = []
    for score in (
        lambda: evaluator.score(round),
        lambda: evaluator.attempt(round),
        lambda: evaluator.attempt(round, calibrate=False),
        lambda: evaluator.calibrate(round),
    ):
        score()
        assert evaluator.spent == sum(rows)
        spent.append(evaluator.spent)
    assert spent == [20, 47, 67, 74]


def test_a_calibration_that_fails_is_counted_and_nothing_else() -> None:
    model = network()
    fitness = Fitness(model, BATCHES, calibration=[(torch.zeros(5, 7), torch.zeros(5))])
    evaluator = Evaluator(fitness, ModuleState(model))
    rows = rows_of(model)
    assert evaluator.attempt(evaluator.round(0, 0)).failed
    assert evaluator.spent == sum(rows) == 5


def test_a_call_of_a_bare_fitness_is_one() -> None:
    evaluator = Evaluator(broken(ValueError))
    for _ in range(3):
        evaluator.attempt(ROUND)
    assert evaluator.spent == 3


def test_members_that_are_scored_at_once_are_counted_each() -> None:
    _, evaluator, _ = opened()
    round = evaluator.round(0, 0)

    def forward(inputs: Tensor) -> Tensor:
        return torch.zeros(5, len(inputs), 3)

    assert len(evaluator.score_stacked(round, forward, 5)) == 5
    assert evaluator.spent == 5 * 20


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_is_done_uncounted_is_not_counted(error: type[BaseException] | None) -> None:
    _, evaluator, rows = opened()
    round = evaluator.round(0, 0)
    evaluator.score(round)
    try:
        with evaluator.uncounted():
            evaluator.score(round)
            if error is not None:
                raise error
    except KeyboardInterrupt:
        assert error is not None
    evaluator.score(round)
    assert sum(rows) == 60
    assert evaluator.spent == 40
