"""Shaping: ties share, failures come last, and nothing moves where all scores are equal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import rankdata, zscore

from evostep.strategies.shaping import SHAPINGS, Shaping, centered_rank, shape_scores, z_score

FINITE = st.floats(allow_nan=False, allow_infinity=False)
# few distinct values, as accuracies have: ties are the rule
TIED = st.integers(-5, 5).map(lambda k: k / 8)
SCORES = st.lists(st.one_of(FINITE, TIED), min_size=2, max_size=40)
FAILED = st.sampled_from([math.nan, math.inf, -math.inf])


@given(SCORES)
def test_centered_ranks_are_scipys_mean_ranks(scores: list[float]) -> None:
    expected = (rankdata(scores, method="average") - 1) / (len(scores) - 1) - 0.5
    np.testing.assert_allclose(centered_rank(scores).numpy(), expected, atol=1e-15)


@given(SCORES)
def test_centered_ranks_sum_to_zero_within_half(scores: list[float]) -> None:
    u = centered_rank(scores)
    assert abs(float(u.sum())) < 1e-12
    assert float(u.abs().max()) <= 0.5


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=40))
def test_centered_ranks_ignore_increasing_transforms(scores: list[int]) -> None:
    u = centered_rank([float(s) for s in scores])
    for transform in (lambda s: 3.0 * s + 7, math.atan, lambda s: float(s) ** 3):
        assert torch.equal(centered_rank([transform(s) for s in scores]), u)


@given(SCORES)
def test_centered_ranks_turn_over_with_the_scores(scores: list[float]) -> None:
    torch.testing.assert_close(centered_rank([-s for s in scores]), -centered_rank(scores))


@pytest.mark.parametrize("shaping", SHAPINGS)
@given(scores=st.lists(TIED, min_size=2, max_size=30), data=st.data())
def test_a_member_is_judged_by_its_score_not_by_its_place(
    shaping: Shaping, scores: list[float], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(scores))))
    u = shape_scores(scores, shaping)
    shuffled = shape_scores([scores[i] for i in order], shaping)
    torch.testing.assert_close(shuffled, u[torch.tensor(order)])
    for i, score in enumerate(scores):  # ties share
        assert torch.equal(u[i], u[scores.index(score)])


@pytest.mark.parametrize("shaping", SHAPINGS)
@given(value=FINITE, n=st.integers(2, 20))
def test_equal_scores_give_exact_zeros(shaping: Shaping, value: float, n: int) -> None:
    assert torch.equal(shape_scores([value] * n, shaping), torch.zeros(n, dtype=torch.float64))


@pytest.mark.parametrize("shaping", SHAPINGS)
@given(failed=st.lists(FAILED, min_size=2, max_size=20))
def test_nothing_but_failures_gives_exact_zeros(shaping: Shaping, failed: list[float]) -> None:
    zeros = torch.zeros(len(failed), dtype=torch.float64)
    assert torch.equal(shape_scores(failed, shaping), zeros)


@given(scores=SCORES, failed=st.lists(FAILED, min_size=1, max_size=6), data=st.data())
def test_failures_share_the_last_ranks(
    scores: list[float], failed: list[float], data: st.DataObject
) -> None:
    mixed = data.draw(st.permutations(scores + failed))
    u = centered_rank(mixed)
    broken = torch.tensor([not math.isfinite(score) for score in mixed])
    assert float(u[broken].max()) < float(u[~broken].min())
    assert len(set(u[broken].tolist())) == 1
    # among themselves the others keep their order
    good = [score for score in mixed if math.isfinite(score)]
    np.testing.assert_array_equal(rankdata(u[~broken]), rankdata(good))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_z_scores_are_scipys(scores: list[float]) -> None:
    assume(np.ptp(scores) > 1e-6 * max(1.0, np.max(np.abs(scores))))
    np.testing.assert_allclose(z_score(scores).numpy(), zscore(scores, ddof=0), atol=1e-6)


@given(st.lists(FINITE, min_size=2, max_size=40))
def test_z_scores_are_finite_and_standardised_at_any_magnitude(scores: list[float]) -> None:
    u = z_score(scores)
    assert bool(u.isfinite().all())
    if bool((u != 0).any()):
        assert abs(float(u.mean())) < 1e-9
        assert float(u.square().mean()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e308])
def test_z_scores_see_a_difference_at_any_magnitude(size: float) -> None:
    expected = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(z_score([-size, size]), expected)


def test_z_scores_count_a_failure_as_the_worst_finite_score() -> None:
    scores = [3.0, math.nan, 1.0, math.inf, 2.0, -math.inf]
    torch.testing.assert_close(z_score(scores), z_score([3.0, 1.0, 1.0, 1.0, 2.0, 1.0]))


def test_z_scores_of_almost_equal_scores_stay_finite() -> None:
    u = z_score([0.1, 0.1, math.nextafter(0.1, 1)])
    assert u.tolist() == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2**0.5])


def test_one_member_has_no_rank() -> None:
    assert centered_rank([4.0]).tolist() == [0.0]
