"""What may be scored, as a number or in a time."""

from typing import Any

import pytest

from evostep.errors import InputError
from evostep.polishing.budget import Cost, evaluations_in, generations_for, parse_budget, timed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *(("90s", 90.0), ("2m", 120.0), ("1h", 3600.0), ("1.5h", 5400.0), (" 2 M ", 120.0)),
        *(("500000", 500_000), ("500_000", 500_000), (7, 7), (None, None), ("-3", -3)),
    ],
)
def test_numbers_and_times(given: Any, expected: float | None) -> None:
    found = parse_budget(given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "m",
        "2 minutes",
        "2m30s",
        "-1m",
        "1e3",
        "nan",
        "infh",
        "2d",
        "1,5h",
        2.5,
        True,
        [1],
        "9" * 5000,
    ],
)
def test_what_is_neither_is_told_in_one_line(given: Any) -> None:
    with pytest.raises(InputError, match="a number of evaluations, or a time such as 90s") as told:
        parse_budget(given)
    assert repr(given) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("given", ["0s", "0.0h", "1000h"])
def test_no_time_and_more_than_there_is(given: str) -> None:
    with pytest.raises(InputError, match="above 0 and of at most 30 days"):
        parse_budget(given)


def test_evaluations_that_a_time_allows_give_back_its_generations() -> None:
    evaluations, time = Cost(700, 340), Cost(2.0, 0.5)
    for generations in (1, 7, 100):
        allowed = evaluations_in(2.0 + 0.5 * generations + 0.1, evaluations, time)
        assert generations_for(allowed, evaluations) == generations
    assert generations_for(evaluations_in(0.1, evaluations, time), evaluations) == 1
    with pytest.raises(InputError, match="at least 1040, one generation of all searches, got 1039"):
        generations_for(1039, evaluations)


def test_time_is_measured() -> None:
    assert 0 < timed(lambda: None) < timed(lambda: sum(range(300_000)))
