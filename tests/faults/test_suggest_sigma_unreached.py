"""suggest_sigma where nothing changes, too little does, or a model gives numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from evostep import Only, suggest_sigma

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


def test_weights_that_do_not_reach_the_outputs() -> None:
    model = nn.Linear(4, 1)
    nn.init.constant_(model.bias, 1e6), nn.init.zeros_(model.weight)
    model.bias.requires_grad_(False)
    numbers = torch.randn(60, 1, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match=r"5% change at no sigma up to 1, where 2\.\d+% do: try"):
        found = suggest_sigma(model, [(X, numbers)], space=Only("weight"))
    assert not found.reached
    assert "at no sigma" in str(found).splitlines()[-1]


@pytest.mark.parametrize("numbers", [True, False])
def test_nothing_changes_at_any_sigma(numbers: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Threshold(-1e9, 0.0), nn.Linear(3, 1))
    nn.init.zeros_(model[2].weight)
    targets = X[:, :1] if numbers else (X[:, 0] > 0).long()
    with pytest.warns(UserWarning, match=r"5% change at no sigma up to 1, where 0\.00% do"):
        found = suggest_sigma(model, [(X, targets)], space=Only("0.*"))
    assert math.isnan(found.sigma)
    assert not found.reached


def test_too_little_changes() -> None:
    model = nn.Linear(4, 3)
    y = torch.zeros(60, dtype=torch.long)
    with pytest.warns(UserWarning, match=r"50% change at no sigma up to 0\.001"):
        found = suggest_sigma(model, [(X, y)], sigmas=(1e-4, 1e-3), share=0.5)
    assert not found.reached


def test_regression_is_measured_in_units_of_the_targets() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    targets = 10 * X.sum(1, keepdim=True)
    found = suggest_sigma(model, [(X, targets)], sigmas=(0.1, 1, 10, 100), share=0.05, draws=16)
    assert found.what == "outputs"
    assert found.reached
    assert "changed outputs" in str(found)
    weaker = suggest_sigma(model, [(X, 100 * targets)], sigmas=(0.1, 1, 10, 100, 1000), draws=16)
    assert weaker.changed[1] == pytest.approx(found.changed[1] / 100, rel=1e-5)
    with pytest.raises(ValueError, match=r"targets are all 3.*targets differ"):
        suggest_sigma(model, [(X, torch.full((60, 1), 3.0))])
