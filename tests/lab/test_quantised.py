"""Quantised layers: their levels, and the gradients of LSQ and LSQ+."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evostep.lab.models import build_model
from evostep.lab.quantised import QuantisedActivation, quantised, quantised_cnn, slowed


def nearest_level(x: float, scale: float, offset: float, low: int, high: int) -> float:
    """The slow twin: of all levels the nearest."""
    levels = [scale * k + offset for k in range(low, high + 1)]
    return min(levels, key=lambda level: abs(level - x))


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (-8, 7), (0, 255)])
def test_every_number_goes_to_the_nearest_level(low: int, high: int) -> None:
    x = torch.linspace(-2.0, 2.0, 101, dtype=torch.float64) + 0.003  # none lies midway
    got = quantised(x, torch.tensor(0.3).double(), torch.tensor(0.05).double(), low, high)
    expected = [nearest_level(value, 0.3, 0.05, low, high) for value in x.tolist()]
    assert torch.allclose(got, torch.tensor(expected).double(), atol=1e-7)


def gradients(x: float) -> tuple[float, float, float]:
    """Return the gradients of x, scale and offset at 2 bits, scale 0.5, offset 0.1."""
    tensors = [torch.tensor(value, requires_grad=True) for value in (x, 0.5, 0.1)]
    quantised(*tensors, -2, 1).backward()
    found = tuple(0.0 if t.grad is None else float(t.grad) for t in tensors)
    return found[0], found[1], found[2]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.25, (1.0, -0.3, 0.0)),  # k = 0.3: within, the rounding error
        (0.45, (1.0, 0.3, 0.0)),  # k = 0.7, rounded up
        (9.0, (0.0, 1.0, 1.0)),  # beyond: the outermost k
        (-9.0, (0.0, -2.0, 1.0)),
    ],
)
def test_gradients_are_those_of_the_papers(x: float, expected: tuple[float, ...]) -> None:
    assert gradients(x) == pytest.approx(expected, abs=1e-5)


def test_the_sign_of_a_scale_does_not_count_and_zero_is_no_division() -> None:
    x = torch.tensor([-0.6, 0.4])
    assert torch.equal(
        quantised(x, torch.tensor(-0.5), 0.0, -2, 1), quantised(x, torch.tensor(0.5), 0.0, -2, 1)
    )
    assert torch.isfinite(quantised(x, torch.tensor(0.0), 0.0, -2, 1)).all()


def test_a_slowed_parameter_is_the_same_and_its_gradient_is_not() -> None:
    w = torch.tensor([2.0, -3.0], requires_grad=True)
    same = slowed(w, 0.25)
    assert torch.allclose(same, w)
    same.sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_each_channel_has_as_many_levels_as_its_bits_allow(bits: int) -> None:
    model = build_model(f"quantised-cnn-{bits}", channels=1, classes=10, image_size=8, seed=0)
    layers = [module for module in model.modules() if hasattr(module, "levels")]
    assert len(layers) == 4
    for layer in layers:
        assert (layer.low, layer.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        for channel in layer.levels().detach():
            assert 1 < len(channel.unique()) <= 2**bits


def test_activations_have_256_levels() -> None:
    for signed, low in ((True, -128), (False, 0)):
        layer = QuantisedActivation(signed=signed)
        seen: Tensor = layer(torch.linspace(-20, 20, 10_001)).detach()
        k = seen / layer.scale.detach()
        assert torch.allclose(k, k.round(), atol=1e-3)
        assert len(k.round().unique()) == 256
        assert round(float(k.min())) == low


def test_gradients_reach_every_parameter_and_scoring_agrees_with_training() -> None:
    torch.manual_seed(0)
    model = quantised_cnn(1, 10, bits=2)
    images = torch.randn(16, 1, 8, 8)
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    model.eval()
    with torch.no_grad():  # without gradients there is a shorter way
        scored = model(images)
    assert torch.allclose(scored, model(images), atol=1e-5)


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = quantised_cnn(1, 2, bits=2)
    targets = torch.arange(40) % 2
    images = torch.randn(40, 1, 8, 8) + 2 * (targets - 0.5).view(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    model.eval()
    assert float((model(images).argmax(1) == targets).float().mean()) > 0.9
