"""Accelerate wraps the optimizer: `optimizer.optimizer.evolve` is the way to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from evostep import Evolved, Fitness, OpenAIES

pytestmark = pytest.mark.slow


def test_what_accelerate_hands_back_holds_the_optimizer() -> None:
    accelerate = pytest.importorskip("accelerate")
    model: Any = nn.Linear(4, 2)
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    model, optimizer = accelerate.Accelerator(cpu=True).prepare(
        model, Evolved(base, OpenAIES(0.05, population=4))
    )
    assert isinstance(optimizer.optimizer, Evolved)
    inputs, targets = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    fitness = Fitness(model, [(inputs, targets)])
    assert len(optimizer.optimizer.evolve(fitness, 2)) == 2
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert state["evolution"]["generation"] == 2
    optimizer.load_state_dict(state)
    assert len(optimizer.optimizer.history) == 2
