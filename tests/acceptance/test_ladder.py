"""Ladder: a gain must exceed its own standard error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from evostep import Scores
from evostep.acceptance import Ladder

VALUES = arrays.arrays(np.float64, st.integers(2, 40), elements=st.integers(-3, 3).map(float))


def scores(values: Any) -> Scores:
    values = torch.as_tensor(values, dtype=torch.float64)
    return Scores(float(values.mean()), values)


@given(VALUES)
def test_it_is_a_gain_above_scipys_standard_error(gains: np.ndarray[Any, Any]) -> None:
    mean, error = gains.mean(), stats.sem(gains)
    if abs(mean - error) < 1e-9:
        return  # rounding decides
    accepted = Ladder()(scores(np.zeros_like(gains)), scores(gains), attempts=1)
    assert accepted is bool(mean > error)


def test_equal_scores_keep_the_parent() -> None:
    same = scores([0.0, 1.0, 1.0])
    assert not Ladder()(same, same, 1)


def test_a_constant_gain_has_no_error() -> None:
    assert Ladder()(scores([0.0, 1.0]), scores([0.5, 1.5]), 1)


def test_one_example_says_nothing() -> None:
    assert not Ladder()(scores([0.0]), scores([1.0]), 1)


def test_nan_is_never_accepted() -> None:
    assert not Ladder()(scores([0.0, 0.0]), scores([1.0, math.nan]), 1)


def test_a_null_candidate_passes_as_often_as_a_normal_number_exceeds_one() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(2000, 2, 100, generator=generator)
    passed = sum(Ladder()(scores(a), scores(b), 1) for a, b in pairs)
    assert passed / 2000 == pytest.approx(stats.norm.sf(1), abs=0.03)


def test_what_it_needs() -> None:
    assert Ladder().every == "phase"
    assert Ladder(every="generation").every == "generation"
    assert Ladder().needs_scores
    assert Ladder().needs_fresh
    assert not Ladder().needs_outputs
    with pytest.raises(ValueError, match="got 'epoch'"):
        Ladder(every="epoch")  # type: ignore[arg-type]
