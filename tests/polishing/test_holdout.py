"""A part of the examples that is judged once."""

import pytest
import torch

from evostep.errors import InputError
from evostep.polishing.holdout import hold_out

STRATA = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5])
def test_each_stratum_has_its_share(share: float) -> None:
    held = hold_out(STRATA, share, 3, seed=1)
    for stratum, there in enumerate((40, 20, 10)):
        assert int(held[stratum == STRATA].sum()) == round(share * there)
    assert torch.equal(held, hold_out(STRATA, share, 3, seed=1))
    assert not torch.equal(held, hold_out(STRATA, share, 3, seed=2))


def test_groups_are_held_out_whole() -> None:
    groups = torch.arange(700) % 140
    held = hold_out(STRATA.repeat_interleave(10), 0.3, 3, seed=0, groups=groups)
    for group in groups.unique():
        assert len(held[groups == group].unique()) == 1
    assert 0.2 < float(held.double().mean()) < 0.4


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (0.0, "between 0 and 1, got 0"),
        (1.0, "between 0 and 1, got 1"),
        (-0.3, "between 0 and 1"),
        (0.02, "class 1 has 20 examples, of which 0 would be held out"),
        (0.9, "class 1 has 20 examples, of which 18 would be held out and 2 left for 3 folds"),
    ],
)
def test_shares_that_leave_nothing_are_refused(share: float, told: str) -> None:
    with pytest.raises(InputError, match=told):
        hold_out(STRATA, share, 3, seed=0)
