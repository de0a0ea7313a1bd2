"""Holding out: a part of the examples that is judged once, by the very decision that is applied."""

from __future__ import annotations

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.noise import derive_seed, make_generator
from evostep.polishing.folds import assign

SHARE = 0.3
FOLDS, HOLDOUT = "folds", "holdout"
_PARTS = 20  # of which whole groups are held out


def hold_out(
    strata: Tensor, share: float, folds: int, seed: int, groups: Tensor | None = None
) -> Tensor:
    """Return which examples are held out, (n,) bool: a share of each stratum, groups whole.

    Args:
        strata: (n,) integers.
        share: of the examples, between 0 and 1.
        folds: how many folds the rest is split in.
        seed: of the shuffling.
        groups: (n,) integers; a group is held out as a whole, or not at all.

    Raises:
        InputError: a share outside (0, 1); a stratum of which nothing, or nearly all, would be
            held out.

    Example:
        >>> hold_out(torch.tensor([0] * 10 + [1] * 20), 0.3, 3, seed=0).sum().item()
        9
    """
    if not 0 < share < 1:
        raise InputError(f"share must lie between 0 and 1, got {share}")
    generator = make_generator(derive_seed(seed, "holdout"))
    held = torch.zeros(len(strata), dtype=torch.bool)
    if groups is None:
        for stratum in strata.unique().tolist():
            there = (strata == stratum).nonzero().flatten()
            shuffled = there[torch.randperm(len(there), generator=generator)]
            held[shuffled[: round(share * len(there))]] = True
    else:
        held = assign(strata, _PARTS, generator, groups) < max(1, round(share * _PARTS))
    unit = torch.arange(len(strata)) if groups is None else groups
    for stratum in strata.unique().tolist():
        here = strata == stratum
        judged, kept = (len(unit[here & part].unique()) for part in (held, ~held))
        if not judged or kept < folds:
            kind = "examples" if groups is None else "groups"
            raise InputError(
                f"class {stratum} has {judged + kept} {kind}, of which {judged} would be held out "
                f"and {kept} left for {folds} folds: give more examples, or another share"
            )
    return held
