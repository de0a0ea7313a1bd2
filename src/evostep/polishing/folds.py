"""Folds: who judges whom, stratified by class, whole groups together."""

from __future__ import annotations

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.noise import derive_seed, make_generator


def make_folds(strata: Tensor, k: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return the fold of each example, so that each has its share of every stratum.

    Args:
        strata: (n,) integers.
        k: how many folds, at least 3: one judges, one stops the search, one is searched on.
        seed: of the shuffling.
        groups: (n,) integers; a group lies in one fold.

    Returns:
        (n,) integers in [0, k).

    Raises:
        InputError: fewer than 3 folds; a stratum with fewer examples, or groups, than folds.

    Example:
        >>> make_folds(torch.tensor([0, 0, 0, 1, 1, 1]), 3, seed=0).bincount().tolist()
        [2, 2, 2]
    """
    if k < 3:
        raise InputError(f"folds must be at least 3, got {k}")
    unit = torch.arange(len(strata)) if groups is None else groups
    for stratum in strata.unique().tolist():
        there = len(unit[strata == stratum].unique())
        if there < k:
            kind = "example" if groups is None else "group"
            raise InputError(
                f"class {stratum} has {there} {kind}{'s' * (there != 1)}, fewer than the {k} "
                "folds: give more examples, or fewer folds"
            )
    folds = assign(strata, k, make_generator(derive_seed(seed, "folds")), groups)
    for stratum in strata.unique().tolist():
        if len(folds[strata == stratum].unique()) < k:
            raise InputError(
                f"groups are too large for {k} folds with examples of every class: take fewer folds"
            )
    return folds


def assign(
    strata: Tensor, k: int, generator: torch.Generator, groups: Tensor | None = None
) -> Tensor:
    """Return the fold of each example as `make_folds` does, however few examples there are."""
    if groups is None:
        return _examples(strata, k, generator)
    return _groups(strata, k, groups, generator)


def _examples(strata: Tensor, k: int, generator: torch.Generator) -> Tensor:
    shuffled = torch.randperm(len(strata), generator=generator)
    ordered = shuffled[strata[shuffled].argsort(stable=True)]  # by stratum, shuffled within
    folds = torch.empty(len(strata), dtype=torch.long)
    folds[ordered] = torch.arange(len(strata)) % k
    return folds


def _groups(strata: Tensor, k: int, groups: Tensor, generator: torch.Generator) -> Tensor:
    """Put each group, the largest first, where the strata lack it most."""
    _, stratum = strata.unique(return_inverse=True)
    n_groups, n_strata = int(groups.max()) + 1, int(stratum.max()) + 1
    held = torch.bincount(groups * n_strata + stratum, minlength=n_groups * n_strata)
    held = held.view(n_groups, n_strata).double()
    wanted = held.sum(0) / k
    order = torch.randperm(n_groups, generator=generator)
    order = order[held[order].sum(1).argsort(descending=True, stable=True)]
    filled = torch.zeros(k, n_strata, dtype=torch.float64)
    fold_of = torch.empty(n_groups, dtype=torch.long)
    for group in order.tolist():
        excess = (((filled + held[group]) / wanted) ** 2 - (filled / wanted) ** 2).sum(1)
        fold_of[group] = int(excess.argmin())
        filled[fold_of[group]] += held[group]
    return fold_of[groups]
