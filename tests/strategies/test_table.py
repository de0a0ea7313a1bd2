"""What holds for every strategy in the table, with its defaults: a new one joins by its row."""

from __future__ import annotations

import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from evostep import AllWeights, Evolution, Improves
from evostep.genome.slots import slots_of_tensors
from evostep.strategies import STRATEGIES
from evostep.strategies.base import Strategy

each = pytest.mark.parametrize("kind", STRATEGIES.values(), ids=STRATEGIES)


def make(kind: type[Strategy]) -> Any:
    return kind(sigma=0.2)  # type: ignore[call-arg]


def start() -> dict[str, Tensor]:
    return {"w": torch.tensor([[3.0, -2.0], [1.0, 0.5]]), "b": torch.tensor([-1.0, 2.0])}


def search(kind: type[Strategy], weights: dict[str, Tensor], **options: Any) -> Evolution:
    found = Evolution(weights, make(kind), seed=4, **options)
    found.guide({name: 2 * tensor for name, tensor in weights.items()})
    return found


def sphere(weights: dict[str, Tensor]) -> float:
    return -float(sum(tensor.square().sum() for tensor in weights.values()))


@each
def test_it_climbs(kind: type[Strategy]) -> None:
    weights = start()
    before = sphere(weights)
    search(kind, weights).evolve(lambda: sphere(weights), 40)
    assert sphere(weights) > 0.95 * before  # both below zero


@each
def test_where_all_score_the_same_nothing_moves(kind: type[Strategy]) -> None:
    weights = start()
    search(kind, weights, accept=Improves()).evolve(lambda: 1.0, 3)
    assert all(torch.equal(weights[name], tensor) for name, tensor in start().items())


@each
def test_scores_that_are_not_finite_move_nothing(kind: type[Strategy]) -> None:
    weights, calls = start(), [0]

    def fitness() -> float:
        calls[0] += 1
        return 0.0 if calls[0] == 1 else math.nan  # the parent's alone is

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (record,) = search(kind, weights).evolve(fitness, 1)
    assert record.failed == len(record.scores) > 0
    assert not record.moved
    assert all(torch.equal(weights[name], tensor) for name, tensor in start().items())


@each
def test_members_differ_by_seed_generation_and_number_alone(kind: type[Strategy]) -> None:
    weights = {"w": torch.arange(1.0, 65.0).reshape(8, 8)}  # signs alone are alike by chance
    slots = slots_of_tensors(weights)
    drawn: dict[tuple[int, int, int], Tensor] = {}
    for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 2), (0, 0, 0)):
        seed, generation, i = key
        genome, strategy = AllWeights().open(slots), make(kind)
        genome.guides = (weights,)
        state = strategy.prepare(genome, strategy.init(genome), generation, seed, None)
        member = strategy.member(genome, state, generation, i, seed).tensor("w").clone()
        assert key not in drawn or torch.equal(drawn[key], member)
        drawn[key] = member
    tensors = list(drawn.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(tensors) for b in tensors[:i])


@each
def test_a_saved_search_goes_on_with_the_same_bits(kind: type[Strategy]) -> None:
    whole = start()
    search(kind, whole).evolve(lambda: sphere(whole), 6)
    weights = start()
    first = search(kind, weights)
    first.evolve(lambda: sphere(weights), 2)
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(first.state_dict()), buffer)
    buffer.seek(0)
    second = Evolution(weights, make(kind))
    second.load_state_dict(torch.load(buffer, weights_only=True))
    second.evolve(lambda: sphere(weights), 4)
    assert all(torch.equal(whole[name], weights[name]) for name in whole)
