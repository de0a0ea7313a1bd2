"""Ranks that evolve side by side drift apart (each has its own BatchNorm statistics): refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from evostep import Evolved, Fitness, OpenAIES


def test_a_group_that_is_made_after_the_optimizer_is_noticed_at_evolve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the refusal leaves weights, statistics and state as they were."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    strategy = OpenAIES(0.1, population=4)
    optimizer = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), strategy, model=model)
    fitness = Fitness(model, [(torch.randn(6, 4), torch.arange(6) % 3)], "accuracy", mode="train")
    optimizer.evolve(fitness)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    with pytest.raises(ValueError, match=r"a group of 8 processes .* then broadcast the weights"):
        optimizer.evolve(fitness)
    assert repr((model.state_dict(), optimizer.state_dict())) == repr(before)
