"""Real digits, and who sees that evolution, and not a gradient, has moved the weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import evostep
from evostep.integrations import Tracker


class Digits(NamedTuple):
    train: TensorDataset  # 10 batches of 32
    other: TensorDataset  # for evolution
    valid: TensorDataset


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(pixels / 16, dtype=torch.float32), torch.as_tensor(labels)
    cuts = (slice(0, 320), slice(320, 520), slice(520, 720))
    return Digits(*(TensorDataset(x[cut], y[cut]) for cut in cuts))


class Watch(Tracker):
    """Counts generations after which the weights are others; there are no steps between them."""

    def __init__(self) -> None:
        self.moved = self.phases = 0
        self.calls: list[str] = []
        self._before: list[Tensor] | None = None

    def begin(self, optimizer: evostep.Evolved) -> None:
        self.calls.append("begin")
        self.optimizer = optimizer

    def generation(self, record: evostep.Record) -> None:
        now = [p.detach().clone() for g in self.optimizer.param_groups for p in g["params"]]
        before, self._before = self._before, now
        if before is not None:
            self.moved += not all(map(torch.equal, before, now))

    def phase(self, records: Any, step: int | None) -> None:
        self.phases += 1
        self.calls.append(f"phase {step}")
        self._before = None

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def watch() -> Watch:
    return Watch()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture
def make_network() -> Any:
    return network


@pytest.fixture
def strategy() -> evostep.OpenAIES:
    return evostep.OpenAIES(sigma=0.05, lr=0.03, population=8)


def assert_same(one: Any, other: Any, seen: str = "") -> None:
    """Compare two states, to the bit."""
    if isinstance(one, Tensor):
        assert other.shape == one.shape, seen
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True, msg=seen or None)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), seen
        for key in one:
            assert_same(one[key], other[key], f"{seen}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), seen
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{seen}.{i}")
    else:
        both_nan = one != one and other != other
        assert both_nan or one == other, seen


@pytest.fixture
def same() -> Any:
    return assert_same


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "WANDB_SILENT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
