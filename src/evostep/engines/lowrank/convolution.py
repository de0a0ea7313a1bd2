"""The rule of convolutions: taps that meet padding alone are left out, single taps are products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evostep.engines.lowrank.interception import Call, Thin
from evostep.engines.lowrank.operators import thin_convolution, thin_linear


def convolution(dimensions: int) -> Callable[..., Any]:
    """Return the rule of convolutions over so many dimensions."""

    def rule(
        call: Call,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        (thin,) = call.only(weight)
        if thin is None:
            return NotImplemented
        if input.dim() == dimensions + 1:
            return rule(
                call, input.unsqueeze(0), weight, bias, stride, padding, dilation, groups
            ).squeeze(0)
        steps, spread = each(stride, dimensions), each(dilation, dimensions)
        if isinstance(padding, str):
            input, padding = _padded(input, padding, weight.shape[2:], spread)
        around = each(padding, dimensions)
        if dimensions == 1:  # as one row
            input = input.unsqueeze(2)
            steps, around, spread = (1, *steps), (0, *around), (1, *spread)
        out = _convolved(call, input, thin, bias, steps, around, spread, groups)
        if call.layers.contiguous:
            out = out.contiguous()
        return out.squeeze(2) if dimensions == 1 else out

    return rule


def each(value: Any, dimensions: int) -> tuple[int, ...]:
    """Return one number for each dimension, of what torch takes for them.

    Example:
        >>> each(2, 3), each([1, 2], 2)
        ((2, 2, 2), (1, 2))
    """
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _padded(
    input: Tensor, padding: str, taps: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Turn "same" and "valid" into numbers; where one side needs more, pad it at once."""
    if padding == "valid":
        return input, (0,)
    total = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
    if any(t % 2 for t in total):
        input = F.pad(input, [side for t in reversed(total) for side in (0, t % 2)])
    return input, tuple(t // 2 for t in total)


def _convolved(
    call: Call,
    x: Tensor,
    thin: Thin,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Convolve over two or three dimensions, as a product where there is a single tap."""
    weight, B = thin.weight, thin.B
    if weight.dim() < 4:
        weight = weight.unsqueeze(2)
    taps = [
        _useful(*one)
        for one in zip(weight.shape[2:], x.shape[2:], stride, padding, dilation, strict=True)
    ]
    padding = tuple(p - t.start * d for p, t, d in zip(padding, taps, dilation, strict=True))
    kept = (slice(None), slice(None), *taps)
    B = B.view(*weight.shape[1:], -1)[kept[1:]].reshape(-1, B.shape[1])
    single = all(t.stop - t.start == 1 for t in taps)
    key = tuple((t.start, t.stop) for t in taps)
    get = call.layers.layouts.get
    if single and groups == 1 and not any(padding):
        matrix = get(thin.weight, key, lambda: _cast(weight[kept].flatten(1).contiguous()))
        steps: Any = (..., *(slice(None, None, s) for s in stride))
        x = x[steps].movedim(1, -1)
        return thin_linear(x, matrix, thin.A, B, bias).movedim(-1, 1)
    layout = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
    kernel = get(thin.weight, key, lambda: _cast(weight[kept].contiguous(memory_format=layout)))
    return thin_convolution(x, kernel, thin.A, B, bias, stride, padding, dilation, groups)


def _cast(weight: Tensor) -> Tensor:
    """Do what autocast would do, once for all calls."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:
        return weight
    return weight.to(torch.get_autocast_dtype(device))


def _useful(taps: int, size: int, stride: int, padding: int, dilation: int) -> slice:
    """Return the taps that meet more than padding: on small maps others only multiply zeros."""
    reach = size + 2 * padding - dilation * (taps - 1) - 1
    last = reach // stride * stride  # where the last window begins
    met = [
        tap
        for tap in range(taps)
        if tap * dilation + last >= padding and tap * dilation - padding < size
    ]
    if not met:
        return slice(0, taps)
    first, end = met[0], met[-1] + 1
    rest = padding - first * dilation
    shorter = size + 2 * rest - dilation * (end - first - 1) - 1
    if rest < 0 or shorter // stride != reach // stride:
        return slice(0, taps)
    return slice(first, end)
