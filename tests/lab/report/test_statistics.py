"""Mean, interval and paired contrast over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evostep.lab.report.statistics import paired_contrast, seeds_to_show, summarise

finite = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 6))


def test_summary_by_hand() -> None:
    # mean 3, sd sqrt(10/4), t(0.975, 4 degrees) = 2.776445 from a printed table
    summary = summarise([1, 2, 3, 4, 5])
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert (summary.n, summary.mean) == (5, 3.0)
    assert summary.sd == pytest.approx(math.sqrt(2.5))
    assert summary.ci95 == pytest.approx((3 - half, 3 + half), abs=1e-6)


def test_contrast_by_hand() -> None:
    # differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3) with 2 degrees of freedom,
    # whose two-sided p is 1 - t / sqrt(t^2 + 2); t(0.975, 2) = 4.302653
    contrast = paired_contrast([2, 4, 6], [1, 2, 3])
    t = 2 * math.sqrt(3)
    assert contrast.mean == 2.0
    assert contrast.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    half = 4.302653 / math.sqrt(3)
    assert contrast.ci95 == pytest.approx((2 - half, 2 + half), abs=1e-6)


def test_contrast_is_scipys_paired_test() -> None:
    generator = np.random.default_rng(0)
    arm, control = generator.normal(0.6, 0.02, 7), generator.normal(0.59, 0.02, 7)
    contrast = paired_contrast(arm.tolist(), control.tolist())
    expected = stats.ttest_rel(arm, control)
    assert contrast.p == pytest.approx(expected.pvalue)
    assert contrast.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_interval_covers_the_truth_in_95_percent_of_experiments() -> None:
    generator = np.random.default_rng(1)
    trials, hits = 1000, 0
    for _ in range(trials):
        seeds = generator.normal(0.5, 0.1, 4)  # large, shared by both arms: pairing removes it
        arm = seeds + generator.normal(0.01, 0.02, 4)
        low, high = paired_contrast(arm.tolist(), seeds.tolist()).ci95
        hits += low <= 0.01 <= high
    spread = math.sqrt(0.95 * 0.05 / trials)
    assert abs(hits / trials - 0.95) < 4 * spread


@settings(deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8), st.randoms())
def test_order_of_seeds_does_not_matter(pairs, random) -> None:
    shuffled = random.sample(pairs, len(pairs))
    one, other = (paired_contrast(*zip(*p, strict=True)) for p in (pairs, shuffled))
    assert one.mean == other.mean
    assert (one.p is None) == (other.p is None)
    if one.p is not None:
        assert one.ci95 == pytest.approx(other.ci95)
        assert one.p == pytest.approx(other.p)


@settings(deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8))
def test_swapping_arm_and_control_negates(pairs) -> None:
    arm, control = zip(*pairs, strict=True)
    one, other = paired_contrast(arm, control), paired_contrast(control, arm)
    assert one.mean == -other.mean
    if one.ci95 is not None:
        assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))


def test_one_seed_has_no_spread() -> None:
    assert (summarise([0.5]).sd, summarise([0.5]).ci95) == (None, None)
    contrast = paired_contrast([0.5], [0.25])
    assert (contrast.n, contrast.mean, contrast.ci95, contrast.p) == (1, 0.25, None, None)


@pytest.mark.parametrize(
    ("arm", "control", "mean"),
    [
        ([0.51, 0.61, 0.71], [0.50, 0.60, 0.70], 0.01),  # equal but for the last bits
        ([0.5, 0.6], [0.5, 0.6], 0.0),
    ],
)
def test_equal_differences_have_no_test(arm, control, mean) -> None:
    contrast = paired_contrast(arm, control)
    assert contrast.mean == pytest.approx(mean)
    assert (contrast.ci95, contrast.p) == (None, None)


def test_equal_values_have_no_interval() -> None:
    assert (summarise([0.1, 0.1, 0.1]).sd, summarise([0.1, 0.1, 0.1]).ci95) == (0.0, None)


@pytest.mark.parametrize(
    ("arm", "control", "message"),
    [
        ([], [], "arm_values is empty"),
        ([0.1, 0.2], [0.1], "got 2 arm values and 1 control values"),
        ([0.1, math.nan], [0.1, 0.2], "arm_values holds nan"),
        ([0.1, 0.2], [0.1, math.inf], "control_values holds inf"),
    ],
)
def test_bad_values_are_refused(arm, control, message) -> None:
    with pytest.raises(ValueError, match=message):
        paired_contrast(arm, control)


def test_seeds_to_show_a_difference_show_it_in_eight_of_ten() -> None:
    """The slow twin: that many differences of this spread, many times over."""
    mean, sd, n = 1.0, 2.0, 8
    half = 2.3646 * sd / n**0.5  # the quantile of Student's t for 7 degrees of freedom
    needed = seeds_to_show(mean, (mean - half, mean + half), n)
    assert needed is not None
    rng = np.random.default_rng(0)
    values = rng.normal(mean, sd, (4000, needed))
    t = values.mean(1) / (values.std(1, ddof=1) / needed**0.5)
    assert 0.75 < (abs(t) > 2.0).mean() < 0.85
    assert seeds_to_show(0.0, (-1.0, 1.0), 5) is None
    assert seeds_to_show(1.0, None, 1) is None
    assert seeds_to_show(1.0, (0.999, 1.001), 3) == 2
    assert seeds_to_show(1e-300, (-1.0, 1.0), 3) == 10**12
