"""Networks whose weights have a few bits and whose activations have eight.

They are trained straight through the rounding. Learned step sizes of Esser et al. 2020, "Learned
Step Size Quantization", https://arxiv.org/abs/1902.08153 (LSQ), with the learned offset of Bhalgat
et al. 2020, https://arxiv.org/abs/2004.09576 (LSQ+). What differs: every layer has as few bits, the
first and the last one too; a step size and an offset for each channel of weights; activations
begin with constant step sizes, and not with the first batch's.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATION_BITS = 8
_REACH = 6.0  # standard deviations that an activation's levels span at the beginning
_LEAST = 1e-6  # a step size of 0 would divide by it


def quantised(x: Tensor, scale: Tensor, offset: Tensor | float, low: int, high: int) -> Tensor:
    """Return x at the nearest of the levels ``scale * k + offset``, k = low, ..., high.

    Its gradient goes straight through the rounding; that of `scale` is LSQ's (eq. 3): the rounding
    error in steps where x lies between the levels, the outermost k beyond them; that of `offset` is
    0 between them, and 1 beyond.

    Args:
        x: any shape.
        scale: distance of two levels; its sign does not count. Broadcasts with x.
        offset: of the level k = 0; likewise.
        low: the lowest k.
        high: the highest.

    Example:
        >>> x = torch.tensor([-9.0, 0.4, 0.6, 9.0])
        >>> quantised(x, torch.tensor(0.5), 0.0, -2, 1)
        tensor([-1.0000,  0.5000,  0.5000,  0.5000])
    """
    scale = scale.abs().clamp_min(_LEAST)
    k = ((x - offset) / scale).clamp(low, high)
    k = k + (k.round() - k).detach()
    return k * scale + offset


def slowed(parameter: Tensor, factor: float) -> Tensor:
    """Return a parameter whose gradient is multiplied by a factor: LSQ, section 2.2."""
    return (parameter - parameter * factor).detach() + parameter * factor


class QuantisedActivation(nn.Module):
    """Activations at 256 levels: of both signs, or from 0 on.

    Attributes:
        scale: (), the distance of two levels.
    """

    def __init__(self, *, signed: bool) -> None:
        super().__init__()
        levels = 2**ACTIVATION_BITS
        self.low = -levels // 2 if signed else 0
        self.high = self.low + levels - 1
        self.scale = nn.Parameter(torch.tensor(_REACH / self.high))

    def forward(self, x: Tensor) -> Tensor:
        """Return x at the nearest levels."""
        if not torch.is_grad_enabled():
            return quantised(x, self.scale, 0.0, self.low, self.high)
        factor = 1 / math.sqrt(x[0].numel() * self.high)
        return quantised(x, slowed(self.scale, factor), 0.0, self.low, self.high)


class _QuantisedWeights(nn.Module):
    """A weight whose output channels have a step size and an offset each.

    Attributes:
        weight: what gradients move; it is rounded in each forward.
        scale: (channels,), the distance of two levels.
        offset: (channels,), of the level 0.
    """

    weight: Tensor
    scale: nn.Parameter
    offset: nn.Parameter

    def _begin(self, bits: int) -> None:
        """Put the levels where LSQ begins (section 2.1): steps of 2 mean|w| / sqrt(highest)."""
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        mean = self.weight.detach().flatten(1).abs().mean(1)
        self.scale = nn.Parameter(2 * mean / math.sqrt(self.high))
        self.offset = nn.Parameter(torch.zeros_like(mean))

    def levels(self) -> Tensor:
        """Return the weight as it counts: at the nearest levels."""
        scale: Tensor = self.scale
        offset: Tensor = self.offset
        if torch.is_grad_enabled():
            factor = 1 / math.sqrt(self.weight[0].numel() * self.high)
            scale, offset = slowed(scale, factor), slowed(offset, factor)
        shape = (-1, *[1] * (self.weight.ndim - 1))
        return quantised(self.weight, scale.view(shape), offset.view(shape), self.low, self.high)


class QuantisedConv2d(nn.Conv2d, _QuantisedWeights):
    """A convolution without a bias whose weights have a few bits."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, bits: int) -> None:
        super().__init__(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self._begin(bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x by the rounded weights."""
        outputs: Tensor = self._conv_forward(x, self.levels(), None)
        return outputs


class QuantisedLinear(nn.Linear, _QuantisedWeights):
    """A linear layer whose weights, but not whose bias, have a few bits."""

    def __init__(self, inputs: int, outputs: int, *, bits: int) -> None:
        super().__init__(inputs, outputs)
        self._begin(bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the rounded weights, plus the bias."""
        return F.linear(x, self.levels(), self.bias)


def quantised_cnn(channels: int, classes: int, bits: int) -> nn.Sequential:
    """Make three convolutions with BatchNorm, each halving the image, before a linear layer.

    Args:
        channels: of the images.
        classes: outputs.
        bits: of each weight, 2 or more.

    Example:
        >>> model = quantised_cnn(1, 10, bits=2)
        >>> levels = model.conv1.levels()[0].unique()
        >>> len(levels) <= 4
        True
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(input=QuantisedActivation(signed=True))
    for block, width in enumerate((4, 8, 16), start=1):
        layers[f"conv{block}"] = QuantisedConv2d(channels, width, 3, stride=2, bits=bits)
        layers[f"norm{block}"] = nn.BatchNorm2d(width)
        layers[f"relu{block}"] = nn.ReLU()
        layers[f"levels{block}"] = QuantisedActivation(signed=False)
        channels = width
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = QuantisedLinear(channels, classes, bits=bits)
    return nn.Sequential(layers)
