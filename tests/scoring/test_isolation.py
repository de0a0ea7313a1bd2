"""Random streams and a model's state, put back as they were."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evostep.scoring.isolation import ModuleState, preserved_rng, seed_everything

# Random streams


def test_streams_of_devices_in_use_are_seeded_and_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[Any] = []
    device = SimpleNamespace(
        is_initialized=lambda: True,
        get_rng_state_all=lambda: "as it was",
        set_rng_state_all=lambda state: log.append(("put back", state)),
        manual_seed_all=lambda seed: log.append(("seeded", seed)),
    )
    monkeypatch.setattr(torch, "cuda", device)
    with preserved_rng():
        seed_everything(2**63 + 5)
    assert log == [("seeded", 5), ("put back", "as it was")]


def test_a_device_that_is_not_in_use_keeps_the_seed_that_it_will_start_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def touched(*_: Any) -> None:
        raise AssertionError("a device that is not in use was seeded")

    for device in (torch.cuda, torch.xpu):
        monkeypatch.setattr(device, "is_initialized", lambda: False)
        monkeypatch.setattr(device, "manual_seed_all", touched)
    seed_everything(1)


def test_streams_are_put_back_where_something_is_raised() -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def interrupted() -> None:
        with preserved_rng():
            seed_everything(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_module_state_puts_back_a_buffer_shared_by_two_modules() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].running_mean = model[0].running_mean
    state = ModuleState(model)
    model[1].running_mean = torch.ones(2)
    model[0].running_mean.add_(3)
    state.restore()
    assert model[1].running_mean is model[0].running_mean
    assert model[0].running_mean.tolist() == [0.0, 0.0]
