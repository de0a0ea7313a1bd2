"""calibration=: a last batch of 2 weighs as 2 of all examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evostep.scoring.calibration import Calibration

BIG, SMALL = torch.zeros(99, 1), torch.full((2, 1), 100.0)


def test_the_mean_is_that_of_all_examples() -> None:
    model = nn.BatchNorm1d(1)
    assert Calibration(model, [(BIG, torch.zeros(99)), (SMALL, torch.zeros(2))])(model) == 101
    assert model.running_mean.item() == pytest.approx(torch.cat([BIG, SMALL]).mean().item())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_order_does_not_matter(order: tuple[int, int]) -> None:
    model = nn.BatchNorm1d(1)
    parts = [(BIG, torch.zeros(99)), (SMALL, torch.zeros(2))]
    Calibration(model, [parts[i] for i in order])(model)
    assert model.running_mean.item() == pytest.approx(200 / 101)


def test_the_variance_is_the_mean_of_those_within_batches() -> None:
    x = torch.randn(30, 1, generator=torch.Generator().manual_seed(0))
    parts: list[Tensor] = [x[:20], x[20:28], x[28:]]
    model = nn.BatchNorm1d(1)
    Calibration(model, [(part, torch.zeros(len(part))) for part in parts])(model)
    expected = sum(len(part) * part.var() for part in parts) / 30
    assert model.running_var.item() == pytest.approx(float(expected), rel=1e-5)


def test_images_and_a_forward_of_ones_own() -> None:
    model = nn.BatchNorm2d(2)
    batches = [torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(n)) for n in (5, 1)]
    Calibration(model, batches, forward=lambda m, x: (m(x), x))(model)
    torch.testing.assert_close(model.running_mean, torch.cat(batches).mean((0, 2, 3)))
