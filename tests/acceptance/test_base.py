"""Acceptance: which of parent and candidate lives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evostep import Always, Improves, Scores
from evostep.acceptance import Rule

ANY = st.floats(allow_nan=True, allow_infinity=True)


@given(ANY, ANY, st.integers(1, 1000))
def test_always_accepts(parent: float, candidate: float, attempts: int) -> None:
    assert Always()(Scores(parent), Scores(candidate), attempts) is True


@given(ANY, ANY, st.integers(1, 1000))
def test_improves_accepts_what_is_strictly_higher(
    parent: float, candidate: float, attempts: int
) -> None:
    assert Improves()(Scores(parent), Scores(candidate), attempts) is (candidate > parent)


@pytest.mark.parametrize(
    ("parent", "candidate", "accepted"),
    [
        (0.5, 0.6, True),
        (0.5, 0.5, False),
        (0.5, 0.4, False),
        (0.5, math.nan, False),
        (-2.0, -1.0, True),
        (0.0, -0.0, False),
    ],
)
def test_improves(parent: float, candidate: float, accepted: bool) -> None:
    assert Improves()(Scores(parent), Scores(candidate), attempts=1) is accepted


@pytest.mark.parametrize(("rule", "scored"), [(Always(), False), (Improves(), True)])
def test_rules_say_what_they_need_and_when(rule: Rule, scored: bool) -> None:
    assert rule.every == "generation"
    assert rule.needs_scores is scored


def test_rules_are_values() -> None:
    assert Improves() == Improves()
    assert Always() != Improves()
