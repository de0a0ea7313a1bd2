"""Mean, interval and paired contrast of values over seeds.

Intervals and p-values are Student's, two-sided; `registered.holm` corrects for their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean, stdev
from typing import Any, TypeGuard

CONFIDENCE = 0.95

# Accuracies are fractions of whole examples: 0.52 - 0.51 and 0.62 - 0.61 are the same difference,
# though their last bits differ. Spreads below this share of the values are rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Summary:
    """Values of one arm over seeds, in the unit of the values.

    `sd` has ddof 1. With one value `sd` and `ci95` are None; with equal values `ci95` is None.
    """

    n: int
    mean: float
    sd: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Contrast:
    """Mean of arm minus control over paired seeds, in the unit of the values.

    Positive: the arm has the larger values. With one pair, or with differences that are all equal,
    `ci95` and `p` are None.
    """

    n: int
    mean: float
    ci95: tuple[float, float] | None
    p: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and 95% t interval of the mean.

    Equal values give `sd` 0 and no interval: a spread of zero says that the measure is too coarse
    for so few seeds, and an interval of no width would claim certainty.

    Args:
        values: one finite number per seed; the order does not matter.

    Raises:
        ValueError: no values, or one that is not finite.

    Example:
        >>> summary = summarise([0.50, 0.52, 0.54])
        >>> round(summary.mean, 3), round(summary.sd, 3), [round(x, 3) for x in summary.ci95]
        (0.52, 0.02, [0.47, 0.57])
    """
    values = _finite_numbers(values, "values")
    mean = fmean(values)
    if len(values) == 1:
        return Summary(1, mean, None, None)
    if _all_equal(values, scale=max(map(abs, values))):
        return Summary(len(values), mean, 0.0, None)
    low, high = _t_test(values).confidence_interval(CONFIDENCE)
    return Summary(len(values), mean, stdev(values), (float(low), float(high)))


def paired_contrast(arm_values: Sequence[float], control_values: Sequence[float]) -> Contrast:
    """Return the mean difference arm - control, with the paired t-test and its 95% interval.

    Differences that are all equal (zero or not) have no spread to measure them by; then there is
    no test: `ci95` and `p` are None rather than a p of 0 that no three seeds can support.

    Args:
        arm_values: one finite number per seed.
        control_values: the control's numbers for the same seeds, in the same order.

    Raises:
        ValueError: sequences of unequal length, empty, or with a value that is not finite.

    Example:
        >>> contrast = paired_contrast([0.51, 0.53, 0.55], [0.50, 0.51, 0.52])
        >>> round(contrast.mean, 3), [round(x, 3) for x in contrast.ci95], round(contrast.p, 3)
        (0.02, [-0.005, 0.045], 0.074)
    """
    if len(arm_values) != len(control_values):
        raise ValueError(
            f"got {len(arm_values)} arm values and {len(control_values)} control values: "
            "give one of each per seed, in the same order"
        )
    arm = _finite_numbers(arm_values, "arm_values")
    control = _finite_numbers(control_values, "control_values")
    differences = [a - c for a, c in zip(arm, control, strict=True)]
    n, mean = len(differences), fmean(differences)
    if n == 1 or _all_equal(differences, scale=max(map(abs, arm + control))):
        return Contrast(n, mean, None, None)
    test = _t_test(differences)  # the paired t-test is the one-sample test of these
    low, high = test.confidence_interval(CONFIDENCE)
    return Contrast(n, mean, (float(low), float(high)), float(test.pvalue))


def seeds_to_show(mean: float, ci95: tuple[float, float] | None, n: int) -> int | None:
    """Return how many seeds would show a difference of this size, 8 times in 10, at this spread.

    ((z_0.975 + z_0.8) sd / mean)^2, with sd from the interval of n seeds: Cohen 1988, chapter 2.

    Args:
        mean: of the paired differences.
        ci95: their interval; None: there is none.
        n: on how many seeds.

    Returns:
        At least 2; None where there is no interval or no difference.

    Example:
        >>> seeds_to_show(1.0, (-1.0, 3.0), 5)
        21
    """
    from scipy.stats import t

    if ci95 is None or mean == 0 or n < 2:
        return None
    sd = (ci95[1] - ci95[0]) / 2 * math.sqrt(n) / float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) + NormalDist().inv_cdf(0.8)
    return max(2, math.ceil(min(z * sd / abs(mean), 1e6) ** 2))  # no more is meant by that


def wilcoxon_p(arm_values: Sequence[float], control_values: Sequence[float]) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test of paired values.

    It asks less of the differences than the t-test, and has less power. None with one pair, or
    where all differences are equal, as for the t-test.

    Args:
        arm_values: one finite number per seed.
        control_values: the control's numbers for the same seeds, in the same order.

    Raises:
        ValueError: as `paired_contrast`.

    Example:
        >>> round(wilcoxon_p([0.51, 0.53, 0.55, 0.58], [0.50, 0.51, 0.52, 0.54]), 4)
        0.125
    """
    if paired_contrast(arm_values, control_values).ci95 is None:
        return None
    from scipy import stats

    scale = max(map(abs, [*arm_values, *control_values]))
    differences = [a - c for a, c in zip(arm_values, control_values, strict=True)]
    # equal differences of fractions differ in their last bits, and would not be ties
    rounded = [round(d / (ROUNDING * scale)) for d in differences]
    return float(stats.wilcoxon(rounded).pvalue)


@cache
def expected_largest(n: int) -> float:
    """Return the mean of the largest of `n` independent standard normal numbers.

    The best of `n` members that differ by luck alone lies so many standard deviations above them.
    It is the integral of 1 - F(x)^n over x > 0 less that of F(x)^n over x < 0, with F the normal
    distribution (David and Nagaraja, Order Statistics, 2003, section 3.1).

    Example:
        >>> [round(expected_largest(n), 3) for n in (1, 2, 8, 100)]
        [0.0, 0.564, 1.424, 2.508]
    """
    if n == 1:
        return 0.0
    step, normal = 0.01, NormalDist()
    below = (normal.cdf(-step * (i + 0.5)) ** n for i in range(900))
    above = (1.0 - normal.cdf(step * (i + 0.5)) ** n for i in range(900))
    return step * (sum(above) - sum(below))


def _t_test(values: Sequence[float]) -> Any:
    """Return the test of the mean against zero; scipy takes a second to import, and runs wait."""
    from scipy import stats

    return stats.ttest_1samp(values, 0.0)


def _finite_numbers(values: Sequence[float], name: str) -> list[float]:
    if not values:
        raise ValueError(f"{name} is empty: give at least one number")
    for value in values:
        if not is_finite(value):
            raise ValueError(f"{name} holds {value!r}: leave out or repeat runs without a number")
    return [float(value) for value in values]


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _all_equal(values: Sequence[float], scale: float) -> bool:
    return max(values) - min(values) <= ROUNDING * scale
