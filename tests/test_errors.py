"""Errors and warnings: what they name, and where they point."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from evostep import Evolution, Evolved, Fitness, RandomMutation, Safe

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


# Where a warning points


MODEL = nn.Linear(2, 2)
DATA = [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))]


def search(**options: Any) -> Evolution:
    return Evolution(MODEL, RandomMutation(0.1, population=2), **options)


def evolved(**options: Any) -> Evolved:
    return Evolved(torch.optim.SGD(MODEL.parameters()), RandomMutation(0.1, 2), **options)


WARNING: dict[str, tuple[Callable[[], Any], str]] = {
    "Fitness": (lambda: Fitness(MODEL, DATA, calibration=DATA), "calibration has no effect"),
    "Evolution.remember": (lambda: search().remember(), "remember.. has no effect"),
    "Evolved.remember": (lambda: evolved().remember(), "remember.. has no effect"),
    "Evolution.evolve, a generation": (
        lambda: search().evolve(lambda: float("nan")),
        "generation 0: the fitness",
    ),
    "Evolved.evolve, a generation": (
        lambda: evolved().evolve(lambda: float("nan")),
        "generation 0: the fitness",
    ),
    "Evolution.evolve, its engine": (
        lambda: search(engine="vmap").evolve(lambda: 0.0),
        "engine 'vmap' cannot score",
    ),
    "Evolved.evolve, its engine": (
        lambda: evolved(engine="vmap", model=MODEL).evolve(lambda: 0.0),
        "engine 'vmap' cannot score",
    ),
}


@pytest.mark.parametrize("name", WARNING)
def test_a_warning_points_at_the_users_line(name: str) -> None:
    call, words = WARNING[name]
    with pytest.warns(UserWarning, match=words) as caught:
        call()
    first, last = call.__code__.co_firstlineno, max(n for *_, n in call.__code__.co_lines() if n)
    for warning in caught:
        assert warning.filename == __file__
        assert first <= warning.lineno <= last
