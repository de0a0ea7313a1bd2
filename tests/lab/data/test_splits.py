"""Splits: exact, disjoint, stratified, and a pure function of data, seed and sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evostep.errors import InputError
from evostep.lab.data.images import ImageData, load_data
from evostep.lab.data.splits import Splits, describe_classes, make_splits, splits_of
from evostep.lab.options import Options

PARTS = ("train", "fitness", "accept", "test")


def labelled(counts: list[int], test_counts: list[int] | None = None) -> ImageData:
    """Data of which only the labels exist, in an order that is not by class."""

    def targets(of: list[int]) -> torch.Tensor:
        label = torch.repeat_interleave(torch.arange(len(of)), torch.tensor(of))
        return label[torch.randperm(len(label), generator=torch.Generator().manual_seed(1))]

    return cast(
        ImageData,
        SimpleNamespace(
            name="labelled",
            targets=targets(counts),
            test_targets=None if test_counts is None else targets(test_counts),
            validation=0,
            classes=tuple(map(str, range(len(counts)))),
        ),
    )


def same(a: Splits, b: Splits, parts: tuple[str, ...] = PARTS) -> bool:
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in parts)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ImageData, dict[str, Any], int]:
    counts = draw(st.lists(st.integers(20, 90), min_size=2, max_size=7))
    k, n = len(counts), sum(counts)
    test_counts = draw(st.none() | st.just([c // 2 for c in counts]))
    quarter = st.integers(k, n // 4)
    sizes = {
        "train_size": draw(st.none() | quarter),
        "fitness_size": draw(st.just(0) | quarter),
        "accept_size": draw(st.just(0) | quarter),
        "test_size": draw(st.none() | quarter),
    }
    return labelled(counts, test_counts), sizes, draw(st.integers(0, 2**32))


@given(cases())
def test_splits_are_exact_disjoint_and_stratified(
    case: tuple[ImageData, dict[str, Any], int],
) -> None:
    data, sizes, seed = case
    splits = make_splits(data, seed, **sizes)
    k, n = len(data.classes), len(data.targets)
    test_targets = data.targets if data.test_targets is None else data.test_targets
    assert splits.official_test == (data.test_targets is not None)

    expected_test = sizes["test_size"]
    if expected_test is None:
        expected_test = len(test_targets) if splits.official_test else round(n / 4)
    assert len(splits.test) == expected_test
    assert len(splits.fitness) == sizes["fitness_size"]
    assert len(splits.accept) == sizes["accept_size"]
    left = n - sizes["fitness_size"] - sizes["accept_size"]
    left -= 0 if splits.official_test else expected_test
    expected_train = left if sizes["train_size"] is None else sizes["train_size"]
    assert len(splits.train) == expected_train

    shared = [splits.train, splits.fitness, splits.accept]
    shared += [] if splits.official_test else [splits.test]
    together = torch.cat(shared)
    assert len(together.unique()) == len(together)
    assert together.min() >= 0
    assert together.max() < n
    for part in PARTS:
        indices = getattr(splits, part)
        assert indices.dtype == torch.int64
        assert torch.equal(indices, indices.sort().values)

    # Each part within 1 of its share of the pool that it was drawn from.
    pool = data.targets.bincount(minlength=k).double()
    for part in ("test", "fitness", "accept", "train"):
        labels = test_targets if part == "test" else data.targets
        drawn = labels[getattr(splits, part)].bincount(minlength=k).double()
        official = part == "test" and splits.official_test
        source = test_targets.bincount(minlength=k).double() if official else pool
        share = source * drawn.sum() / source.sum()
        assert (drawn - share).abs().max() < 1
        if not official:
            pool = pool - drawn


@given(cases())
def test_splits_are_a_pure_function(case: tuple[ImageData, dict[str, Any], int]) -> None:
    data, sizes, seed = case
    state = torch.get_rng_state()
    splits = make_splits(data, seed, **sizes)
    assert torch.equal(state, torch.get_rng_state())
    assert same(splits, make_splits(data, seed, **sizes))

    other_train = make_splits(data, seed, **{**sizes, "train_size": len(data.classes)})
    assert same(splits, other_train, ("fitness", "accept", "test"))
    only_test = {**sizes, "train_size": None, "fitness_size": 0, "accept_size": 0}
    assert same(splits, make_splits(data, seed, **only_test), ("test",))


def test_another_seed_gives_another_split() -> None:
    data = labelled([50] * 4)
    sizes = {"train_size": 40, "fitness_size": 40, "accept_size": 40, "test_size": 40}
    splits = [make_splits(data, seed, **sizes) for seed in range(20)]
    for part in PARTS:
        drawn = {tuple(getattr(split, part).tolist()) for split in splits}
        assert len(drawn) == len(splits)


def test_every_example_is_as_likely_as_any_other() -> None:
    data = labelled([30, 60])
    times = torch.zeros(90)
    for seed in range(2000):
        sizes = {"train_size": 30, "fitness_size": 30, "accept_size": 0, "test_size": 30}
        times[make_splits(data, seed, **sizes).fitness] += 1
    # Each is binomial with 2000 draws at 1/3: deviation 21, and five of them is generous.
    assert (times - 2000 / 3).abs().max() < 5 * 21.1


def test_ties_between_classes_are_broken_by_lot() -> None:
    data = labelled([10] * 10)
    favoured = torch.zeros(10)
    for seed in range(300):
        sizes = {"train_size": None, "fitness_size": 15, "accept_size": 0, "test_size": 10}
        counts = data.targets[make_splits(data, seed, **sizes).fitness].bincount(minlength=10)
        favoured += counts - 1
    assert favoured.sum() == 1500
    assert (favoured - 150).abs().max() < 5 * 8.7  # binomial, 300 draws at 1/2


def test_json_names_size_and_hash() -> None:
    data = labelled([10, 10], [4, 4])
    splits = make_splits(data, 3, train_size=None, fitness_size=4, accept_size=0, test_size=None)
    told, lists = splits.as_json(), splits.indices()
    assert list(told) == list(lists) == list(PARTS)
    assert {part: told[part]["n"] for part in PARTS} == {
        "train": 16,
        "fitness": 4,
        "accept": 0,
        "test": 8,
    }
    assert lists["test"] == list(range(8))
    packed = struct.pack("<4q", *lists["fitness"])
    assert told["fitness"]["sha256"] == hashlib.sha256(packed).hexdigest()


FINE: dict[str, Any] = {
    "train_size": None,
    "fitness_size": 10,
    "accept_size": 0,
    "test_size": None,
}


@pytest.mark.parametrize(
    ("sizes", "official", "told"),
    [
        ({"fitness_size": -1}, False, "fitness size -1 is negative"),
        ({"train_size": -5}, False, "train size -5 is negative"),
        ({"fitness_size": 3}, False, "fitness size 3 is less .* 5 classes: give 5 or more, or 0"),
        ({"accept_size": 4}, False, "accept size 4 is less .* 5 classes"),
        ({"test_size": 0}, False, "test size 0 is less .* 5 classes: give 5 or more$"),
        ({"train_size": 0}, False, "train size 0 is less"),
        ({"train_size": 80}, False, r"80 \+ fitness 10 \+ accept 0 \+ test 25 = 115 .* has 100"),
        ({"fitness_size": 100}, False, "has 100 to share"),
        ({"fitness_size": 73}, False, r"train needs 5 or more"),
        ({"fitness_size": 10**12}, False, "has 100 to share"),
        ({"train_size": 91}, True, r"91 \+ fitness 10 \+ accept 0 = 101 .* has 100"),
        ({"test_size": 51}, True, "test size 51 is more than the 50 images"),
    ],
)
def test_bad_sizes_are_told_in_one_line(sizes: dict[str, Any], official: bool, told: str) -> None:
    data = labelled([20] * 5, [10] * 5 if official else None)
    with pytest.raises(InputError, match=told) as caught:
        make_splits(data, 0, **{**FINE, **sizes})
    assert "\n" not in str(caught.value)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="seed -1 is negative: give 0 or more"):
        make_splits(labelled([20, 20]), -1, **FINE)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 300),  # of 1,348 that test leaves
        ({"test_size": 1500}, 99),
        ({"test_size": 1500, "accept_size": 30}, 89),
        ({"test_size": 1500, "fitness_size": 200}, 200),
        ({"test_size": 1770}, 10),  # one of each class
    ],
)
def test_unless_asked_for_fitness_leaves_most_of_few_examples_to_training(
    settings: dict[str, int], expected: int
) -> None:
    options = Options(**settings, given=frozenset(settings))  # type: ignore[arg-type]
    assert len(splits_of(options, load_data("digits"), 0).fitness) == expected


def test_classes_are_described_with_the_fewest_of_each_part() -> None:
    digits = load_data("digits")
    splits = splits_of(Options(), digits, 0)
    counts = torch.bincount(digits.targets).tolist()
    told = describe_classes(digits, splits)
    assert told.startswith(f"10 classes: 0 {counts[0]}, 1 {counts[1]}, ")
    fewest = torch.bincount(digits.targets[splits.test]).min()
    assert re.search(rf"; fewest: train \d+ \(8\), fitness .*, test {fewest} \(\d\)$", told)
    many = dataclasses.replace(digits, classes=tuple(map(str, range(13))))
    assert describe_classes(many, splits).startswith("13 classes of 0 to 183 examples; fewest: ")
