"""Options: their ranges and types, and the three ways to write seeds."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evostep.errors import InputError
from evostep.lab.options import Options, check_type, flag, kind_in_words, parse_seeds


@pytest.mark.parametrize(
    ("value", "seeds"),
    [
        (3, [0, 1, 2]),
        ("3", [0, 1, 2]),
        (" 2 ", [0, 1]),
        ("0,4,7", [0, 4, 7]),
        ("7, 4", [7, 4]),
        ("4,", [4]),
        ("100:103", [100, 101, 102]),
        ("10:12", [10, 11]),
        ([5, 0], [5, 0]),
        ((1,), [1]),
    ],
)
def test_seeds_are_a_count_a_list_or_a_range(value: Any, seeds: list[int]) -> None:
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize(
    "value",
    [
        0,
        "0",
        "",
        "a",
        "1.5",
        "-1",
        -1,
        "3:3",
        "5:3",
        "1,1",
        [1, 1],
        [-1],
        [],
        "1:2:3",
        ",",
        "1,,2",
        "9" * 5000,
        f"0:{'9' * 5000}",
        f"1,{'9' * 5000}",
    ],  # more than Python reads
)
def test_other_seeds_are_refused_and_named(value: Any) -> None:
    with pytest.raises(InputError, match="--seeds") as caught:
        parse_seeds(value)
    assert str(value) in str(caught.value)


@given(st.integers(0, 1000), st.integers(1, 50))
def test_a_range_leaves_its_end_out(first: int, n: int) -> None:
    assert parse_seeds(f"{first}:{first + n}") == list(range(first, first + n))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "--epochs must be at least 0, got -1"),
        ({"evolve_from": -1}, "--evolve-from must be at least 0, got -1"),
        ({"every": 0}, "--every must be at least 1, got 0"),
        ({"generations": -1}, "--generations must be at least 0, got -1"),
        ({"calibration_size": 1}, "--calibration-size must be at least 2, got 1"),
        ({"batch": 1}, "--batch must be at least 2, got 1"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"weight_decay": -0.1}, "--weight-decay must be at least 0, got -0.1"),
        ({"weight_decay": float("nan")}, "--weight-decay must be a finite number, got nan"),
        ({"epochs": 10, "evolve_from": 11}, "--evolve-from 11 lies past the end"),
        ({"lr": 0.0}, "--lr must be > 0, got 0.0"),
        ({"lr": float("inf")}, "--lr must be a finite number, got inf"),
        ({"lr": float("nan")}, "--lr must be a finite number, got nan"),
        ({"momentum": 1.0}, r"--momentum must lie in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"--momentum must lie in \[0, 1\), got -0.1"),
        ({"epochs": None}, "--epochs must be a whole number, got null"),
        ({"epochs": 2.0}, "--epochs must be a whole number, got 2.0"),
        ({"batch": True}, "--batch must be a whole number, got true"),
        ({"lr": "fast"}, "--lr must be a number, got 'fast'"),
        ({"optimizer": "lamb"}, "--optimizer must be sgd or adam or adamw, got 'lamb'"),
        ({"augment": "mixup"}, "--augment must be none or shift or flip-shift, got 'mixup'"),
        ({"accept": "perhaps"}, "--accept must be improves or always or .*, got 'perhaps'"),
        ({"arms": None}, "--arms must be text or a list, got null"),
        ({"arms": ["sgd", 3]}, "--arms must be text or a list"),
        ({"seeds": ["a"]}, "--seeds must be"),
        ({"pretrained": 1}, "--pretrained must be true or false, got 1"),
        ({"init_from": "w.safetensors"}, "--init-from must be a path or null"),
    ],
)
def test_an_option_out_of_range_or_of_another_type_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Options(**settings)


def test_numbers_at_the_edge_are_taken() -> None:
    options = Options(epochs=1, evolve_from=0, every=1, generations=0, batch=2, threads=1, lr=1)
    assert (options.epochs, options.lr, options.momentum) == (1, 1, 0.9)
    assert Options(epochs=5, evolve_from=5).evolve_from == 5


def test_each_option_says_what_it_is() -> None:
    hints = typing.get_type_hints(Options, include_extras=True)
    for field in dataclasses.fields(Options):
        if field.name not in ("strategies", "given", "from_file"):
            kind, text = typing.get_args(hints[field.name])
            assert text.strip(), field.name
            assert kind_in_words(kind)


def test_options_are_frozen_and_their_seeds_parsed() -> None:
    options = Options(seeds="2:4")
    assert options.seed_list == [2, 3]
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seeds = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (3, float, True),
        (True, float, False),
        (True, bool, True),
        (True, int, False),
        (3.0, int, False),
        (None, int | None, True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ({"a": 1}, Mapping[str, Any], True),
        (Path("x"), Path | None, True),
        ("x", Path | None, False),
        (object(), Any, True),
    ],
)
def test_check_type(value: Any, kind: Any, fits: bool) -> None:
    if fits:
        check_type("x", value, kind)
    else:
        with pytest.raises(InputError, match=r"^x must be "):
            check_type("x", value, kind)


def test_flag() -> None:
    assert flag("evolve_from") == "--evolve-from"


@pytest.mark.parametrize("kind", [float, int, float | None])
def test_a_whole_number_that_no_float_holds_is_refused(kind: Any) -> None:
    check_type("sigma", 10**308, kind)
    with pytest.raises(InputError, match="sigma must be a number that a float can hold"):
        check_type("sigma", -(10**309), kind)
