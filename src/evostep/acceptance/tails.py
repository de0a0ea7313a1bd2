"""Tail probabilities, in plain Python: the library proper has no scipy."""

from __future__ import annotations

import math


def binomial_tail(k: int, n: int) -> float:
    """Return P(X >= k) for X ~ Binomial(n, 1/2), exactly up to rounding.

    Example:
        >>> binomial_tail(4, 5)
        0.1875
    """
    if k <= 0:
        return 1.0
    if 2 * k <= n:  # sum the shorter tail: P(X >= k) = 1 - P(X >= n - k + 1)
        return 1.0 - binomial_tail(n - k + 1, n)
    if n <= 1000:  # lgamma rounds; integers do not
        ways: int = sum(math.comb(n, i) for i in range(k, n + 1))
        return float(ways / 2**n)
    term = math.exp(
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    )
    total = 0.0
    for i in range(k, n + 1):
        total += term
        term *= (n - i) / (i + 1)  # C(n, i+1) / C(n, i)
        if term < total * 1e-17:
            break
    return min(total, 1.0)


def student_tail(t: float, df: int) -> float:
    """Return P(T > t) for Student's t with `df` degrees of freedom.

    By the regularised incomplete beta function I_x(df/2, 1/2), x = df / (df + t^2) (Abramowitz &
    Stegun 26.7.1), which Lentz's method sums as a continued fraction (26.5.8).

    Example:
        >>> round(student_tail(2.015048, 5), 6)
        0.05
    """
    if math.isnan(t):
        return math.nan
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    square = t * t
    half = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + square), square / (df + square))
    return half if t > 0 else 1.0 - half


def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """Return I_x(a, b); y = 1 - x, passed on since the difference would round."""
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
    )
    front = math.exp(log_front)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, y) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function (modified Lentz)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1), tiny)
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + coefficient * d, tiny)
            c = _away_from_zero(1.0 + coefficient / c, tiny)
            result *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return result
    return result


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
