"""Folds share every class, and never part a group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evostep.errors import InputError
from evostep.polishing.folds import make_folds


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=20, max_size=60), st.integers(3, 5), st.integers(0, 9))
def test_every_fold_has_its_share_of_every_class(labels: list[int], k: int, seed: int) -> None:
    strata = torch.tensor([*labels, *[0, 1, 2, 3] * k])
    folds = make_folds(strata, k, seed)
    for stratum in range(4):
        there = folds[strata == stratum].bincount(minlength=k)
        assert there.max() - there.min() <= 1
    assert torch.equal(folds, make_folds(strata, k, seed))


def test_seeds_make_other_folds() -> None:
    strata = torch.arange(60) % 3
    assert not torch.equal(make_folds(strata, 3, 0), make_folds(strata, 3, 1))


def test_a_group_lies_in_one_fold_and_folds_are_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(40).repeat_interleave(5)
    strata = torch.randint(3, (200,), generator=generator)
    folds = make_folds(strata, 4, 0, groups)
    assert all(len(folds[groups == g].unique()) == 1 for g in range(40))
    for stratum in range(3):
        there = folds[strata == stratum].bincount(minlength=4)
        assert there.min() > 0.6 * there.float().mean()


@pytest.mark.parametrize(
    ("strata", "k", "groups", "said"),
    [
        ([0, 0, 0, 0, 1, 1], 3, None, "class 1 has 2 examples, fewer than the 3 folds"),
        ([0, 0, 0, 1], 3, None, "class 1 has 1 example,"),
        ([0, 0, 0, 0, 1, 1, 1, 1], 3, [0, 1, 2, 3, 0, 0, 1, 1], "class 1 has 2 groups"),
        ([0, 0, 0, 1, 1, 1], 2, None, "at least 3, got 2"),
    ],
)
def test_too_few_are_named(strata: list[int], k: int, groups: list[int] | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_folds(torch.tensor(strata), k, 0, None if groups is None else torch.tensor(groups))
