"""A decision goes into the last layer and comes out of it, bit for bit."""

import pytest
import torch
from torch import nn

from evostep.polishing.decision import Folded, find_output_layers

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) * 2


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.same(self.same(x))


def test_the_layer_that_makes_the_outputs_is_found() -> None:
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert find_output_layers(plain, lambda: plain(X)) == [plain[2]]
    wrapped = nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 3, 1), nn.Flatten())
    assert find_output_layers(wrapped, lambda: wrapped(X)) == [wrapped[1]]
    scaled, twice = Scaled(), Twice()
    assert find_output_layers(scaled, lambda: scaled(X)) == [scaled.head]  # is tried
    assert find_output_layers(twice, lambda: twice(X)) == []


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
