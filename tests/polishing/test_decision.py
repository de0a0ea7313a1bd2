"""A decision goes into the last layer and comes out of it, bit for bit."""

import pytest
import torch
from torch import nn

from evostep.polishing.decision import Folded

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_outputs_move_by_the_decision_and_come_back(
    has_bias: bool, dtype: torch.dtype, scale: float
) -> None:
    layer = nn.Linear(4, 3, bias=has_bias).to(dtype)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x, bias = X.to(dtype), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    outputs = layer(x)
    folded = Folded(layer, bias, scale)
    folded.apply()
    folded.apply()  # the second does nothing
    torch.testing.assert_close(layer(x), outputs * scale + bias.to(dtype))
    folded.revert()
    folded.revert()
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
