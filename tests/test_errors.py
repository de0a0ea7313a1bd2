"""Errors and warnings: what they name, and where they point."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from evostep import RandomMutation, Safe

OLD: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "RandomMutation": (
        lambda: RandomMutation(0.1, children=4),  # type: ignore[call-arg]
        lambda: RandomMutation(0.1, 4),
    ),
    "Safe.cost": (
        lambda: Safe().cost(100, 10, children=4),  # type: ignore[call-arg]
        lambda: Safe().cost(100, 10, population=4),
    ),
}
BOTH: list[Callable[[], Any]] = [
    lambda: RandomMutation(0.1, 4, children=4),  # type: ignore[call-arg]
    lambda: RandomMutation(0.1, population=4, children=4),  # type: ignore[call-arg]
    lambda: dataclasses.replace(RandomMutation(0.1), children=4),  # type: ignore[call-arg]
    lambda: Safe().cost(100, 10, 4, children=4),  # type: ignore[call-arg]
]


@pytest.mark.parametrize("name", OLD)
def test_children_is_read_as_population_with_one_warning_at_the_users_line(name: str) -> None:
    old, new = OLD[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert old() == new()
    (warning,) = caught
    assert warning.category is FutureWarning
    assert str(warning.message).startswith("children is now called population")
    assert warning.filename == __file__


@pytest.mark.parametrize("call", BOTH)
def test_population_by_both_names_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"^population and children, .* leave children out$"):
        call()


def test_the_old_attribute_is_gone_not_wrong() -> None:
    assert not hasattr(RandomMutation(0.1), "children")
