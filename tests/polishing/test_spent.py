"""Every forward through the network is counted: `Polished.sample_forwards`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.data import TensorDataset

import evostep
from evostep.polishing import weights

N, HELD = 240, 90
QUICK: dict[str, Any] = {"folds": 3, "population": 4, "draws": 200}
WEIGHTS = 7 * 2 * N * (8 + 2 * 5)  # sets, sigmas, examples, stops, two generations


def drawn(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    inputs = torch.randn(n, 3, generator=generator)
    return inputs + 3.0 * nn.functional.one_hot(labels, 3), labels


def batches(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    inputs, labels = drawn(n, seed)
    return list(zip(inputs.split(100), labels.split(100), strict=True))


class Counts(nn.Linear):
    """Prefers class 0 and counts the rows that it sees."""

    seen = 0

    def __init__(self, bias: float = 3.0) -> None:
        super().__init__(3, 3)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3))
            self.bias.copy_(torch.tensor([bias, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        if _get_current_dispatch_mode() is None:  # else it is asked which layer is the last
            Counts.seen += len(x)
        return super().forward(x)


def in_decisions(bias: float) -> evostep.Polished:
    return evostep.polish(Counts(bias), batches(N, 0), "balanced-accuracy", budget=5000, **QUICK)


def in_weights(**options: Any) -> evostep.Polished:
    return evostep.polish(
        nn.Sequential(nn.Identity(), Counts()),
        batches(N, 0),
        "balanced-accuracy",
        space="head",
        **QUICK | options,
    )


def out_of_fold() -> evostep.Polished:
    data = TensorDataset(*drawn(N, 0))
    return evostep.out_of_fold(
        Counts, lambda model, part: None, data, "balanced-accuracy", budget=5000, **QUICK
    )[1]


CASES: dict[str, Callable[[], evostep.Polished]] = {
    "decision, folded in": lambda: in_decisions(3.0),
    "decision, nothing to gain": lambda: in_decisions(0.0),
    "head": lambda: in_weights(budget=WEIGHTS),
    "head, held out": lambda: in_weights(confirm="holdout", budget=WEIGHTS),
    "head, others held out": lambda: in_weights(confirm=batches(HELD, 1), budget=WEIGHTS),
    "out of fold": out_of_fold,
}
UNCHANGED = ("decision, nothing to gain", "head, held out")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:the network is right")
def test_every_forward_is_counted(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = partial(evostep.Evolution, engine="inplace")  # others stack members in a forward
    monkeypatch.setattr(weights, "Evolution", one_by_one)
    Counts.seen = 0
    result = CASES[case]()
    assert Counts.seen == result.sample_forwards
    assert result.applied == (case not in UNCHANGED)
