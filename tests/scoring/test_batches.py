"""Fitness in a pickle or a deep copy; what is copied for a member; random streams."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from evostep import Evolution, Fitness, OpenAIES
from evostep.scoring.accumulators import blank
from evostep.scoring.batches import Examples
from evostep.scoring.metrics import make_metric

X, Y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
BATCHES = list(zip(X.split(8), Y.split(8), strict=True))


@pytest.mark.parametrize("metric", ["accuracy", "neg-loss", "macro-f1", torchmetrics.Accuracy])
@pytest.mark.parametrize("read", [False, True])
def test_a_pickle_scores_the_same(metric: Any, read: bool) -> None:
    if not isinstance(metric, str):
        metric = metric(task="multiclass", num_classes=3)
    fitness = Fitness(nn.Linear(4, 3), BATCHES, metric, calibration=None)
    expected = fitness() if read else None
    again = pickle.loads(pickle.dumps(fitness))
    assert again() == (fitness() if expected is None else expected)
    assert again.model is not fitness.model


def test_a_pickle_has_no_second_copy_of_the_batches() -> None:
    fitness = Fitness(nn.Linear(4, 3), BATCHES)
    before = len(pickle.dumps(fitness))
    fitness()
    assert len(pickle.dumps(fitness)) < before + 100


def test_a_deep_copy_shares_the_batches_and_not_the_model() -> None:
    class Source:
        reads = 0

        def __iter__(self) -> Iterator[Any]:
            self.reads += 1
            return iter(BATCHES)

    source = Source()
    fitness = Fitness(nn.Linear(4, 3), source)
    value = fitness()
    other = copy.deepcopy(fitness)
    assert other() == value
    assert source.reads == 1
    with torch.no_grad():
        other.model.weight.zero_()
    assert fitness() == value
    model, together = copy.deepcopy((fitness.model, fitness))
    assert together.model is model


def bytes_of(value: Any, known: set[int]) -> int:
    """Count the memory of the tensors that an object holds, but for what is known."""
    found = 0
    for held in (vars(value), getattr(value, "_buffers", {})):
        for item in held.values():
            for tensor in item if isinstance(item, list) else [item]:
                if isinstance(tensor, Tensor) and tensor.data_ptr() not in known:
                    found += tensor.nbytes
    return found


@pytest.mark.parametrize("metric", [torchmetrics.CatMetric, torchmetrics.AUROC])
def test_what_a_metric_has_seen_is_not_copied_for_each_member(metric: Any) -> None:
    seen = metric(task="binary") if metric is torchmetrics.AUROC else metric()
    million = torch.rand(1_000_000)
    seen.update(*([million, (million > 0.5).long()] if metric is torchmetrics.AUROC else [million]))
    known = {t.data_ptr() for v in vars(seen).values() if isinstance(v, list) for t in v}
    make = make_metric(seen, higher_is_better=True)
    members: list[Any] = [make() for _ in range(3)]
    assert sum(bytes_of(member.metric, known) for member in members) < 1000
    assert bytes_of(seen, set()) >= million.nbytes, "the user's own keeps its state"
    assert bytes_of(blank(seen), set()) < 1000, "and what is made of it lets go of it"


def test_random_streams_are_the_same_for_all_of_a_generation() -> None:
    drawn: list[tuple[float, ...]] = []

    class Drawing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            drawn.append((random.random(), float(np.random.rand()), torch.rand(1).item()))
            return super().forward(input)

    model = Drawing(4, 3)
    search = Evolution(model, OpenAIES(0.1, population=4), engine="inplace", seed=3)
    search.evolve(Fitness(model, [(X, Y)], "neg-loss"), 3)
    assert len(set(drawn)) == 3, "one a generation"
    assert len(drawn) >= 3 * 5
    first = list(dict.fromkeys(drawn))
    drawn.clear()
    again = Evolution(model, OpenAIES(0.1, population=4), engine="inplace", seed=3)
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again.evolve(Fitness(model, [(X, Y)], "neg-loss"), 3)
    assert list(dict.fromkeys(drawn)) == first, "a pure function of seed and generation"


def test_examples_are_told_by_their_places() -> None:
    examples = Examples((), 0).with_batches(BATCHES)
    assert len(examples) == 30
    assert [len(x) for x, _ in examples.only([0, 3])] == [8, 6]
    assert examples[3][0] is BATCHES[3][0]
    assert isinstance(examples.only([1]), Examples)
