"""Alternate: when to evolve."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evostep import Alternate


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"evolution": 3}, [3, 3, 3, 3, 3, 3]),
        ({"gradient": 2, "evolution": 3}, [0, 3, 0, 3, 0, 3]),
        ({"gradient": 1, "evolution": 2, "start": 4}, [0, 0, 0, 0, 2, 2]),
        ({"gradient": 2, "evolution": 2, "start": 3}, [0, 0, 0, 0, 2, 0]),
        ({"gradient": 4, "evolution": 5}, [0, 0, 0, 5, 0, 0]),
        ({"evolution": 0}, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_generations_after_each_epoch(options: dict[str, int], expected: list[int]) -> None:
    assert [Alternate(**options).generations(epoch) for epoch in range(6)] == expected


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 30), st.integers(0, 60))
def test_a_phase_follows_each_n_epochs_and_none_comes_before_the_start(
    gradient: int, evolution: int, start: int, epochs: int
) -> None:
    schedule = Alternate(gradient, evolution, start)
    plan = [schedule.generations(epoch) for epoch in range(epochs)]
    assert sum(plan) == evolution * (max(0, epochs - start) // gradient)
    assert not any(plan[:start])
    assert set(plan) <= {0, evolution}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gradient": 0}, "gradient must be at least 1, got 0"),
        ({"evolution": -1}, "evolution must be at least 0, got -1"),
        ({"start": -2}, "start must be at least 0, got -2"),
    ],
)
def test_numbers_below_their_least_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Alternate(**options)


def test_it_is_frozen() -> None:
    schedule: Any = Alternate()
    with pytest.raises(FrozenInstanceError):
        schedule.start = 3
