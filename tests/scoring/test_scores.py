"""Scores: one carrier, read from the device when they are asked for, or all together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from evostep.scoring.scores import Scores, read


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each tensor that went from the device to Python."""
    sizes: list[int] = []
    for name in ("tolist", "item", "__float__"):
        real = getattr(Tensor, name)

        def reading(self: Tensor, real: object = real) -> object:
            sizes.append(self.numel())
            return real(self)  # type: ignore[operator]

        monkeypatch.setattr(Tensor, name, reading)
    return sizes


def test_a_value_is_read_when_it_is_asked_for_and_once(reads: list[int]) -> None:
    scores = Scores(torch.tensor(0.25))
    assert reads == []
    assert [scores.value, scores.value] == [0.25, 0.25]
    assert reads == [1]


def test_many_are_read_together_and_keep_their_order(reads: list[int]) -> None:
    given = [
        Scores(torch.tensor(0.25)),
        Scores(0.5),
        Scores(torch.tensor(3)),
        Scores(torch.tensor(0.1, dtype=torch.float64)),
    ]
    found = read(given)
    assert reads == [3]
    assert [one.value for one in found] == [0.25, 0.5, 3.0, 0.1]
    assert [id(one) for one in found] == [id(one) for one in given]
    assert reads == [3], "nothing is read again"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_failure_once_it_is_read(value: float) -> None:
    for given in (Scores(value), Scores(torch.tensor(value))):
        (found,) = read([given])
        assert found.failed
        assert math.isnan(found.value)
        assert found.error == f"the fitness was {value}"


def test_a_failure_stays_as_it_is() -> None:
    failure = Scores.failure(ArithmeticError("too hot"), seen=3)
    found = read([Scores(1.0), failure])
    assert found[1] is failure
    assert failure.error == "ArithmeticError: too hot"
    assert failure.seen == 3
    assert math.isnan(failure.value)
    assert read([]) == []
