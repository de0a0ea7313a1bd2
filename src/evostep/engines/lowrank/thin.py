"""Layers whose weight all members share, each member with a thin correction of its own.

A member's weight is W + A B^T with thin A and B, so that its layer gives x W^T + (x B) A^T: one
large product for all members, and two thin ones for each ("Evolution Strategies at the Hyperscale",
2025, https://arxiv.org/abs/2511.16652, section 4). The dense A B^T is not built.

The functions here take physical tensors. n members come first in each: A is (n, rows, r), B is
(n, columns, r), where the weight is a matrix of its first dimension x all others; a bias is
(n, rows). What members share (`shared`) has no such dimension, and goes through W once. Each
function is also an operator, ``thin_linear`` and so on, which `torch.vmap` batches over members.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}
_LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def _autocasts(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Do to the inputs what autocast does to those of a product, then leave it off."""

    @functools.wraps(function)
    def cast(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return function(x, *arguments, **options)
        dtype = torch.get_autocast_dtype(device)

        def to_dtype(value: Any) -> Any:
            wide = isinstance(value, Tensor) and value.dtype != torch.float64
            return value.to(dtype) if wide else value

        with torch.autocast(device, enabled=False):
            return function(to_dtype(x), *map(to_dtype, arguments), **options)

    return cast


@_autocasts
def linear(
    x: Tensor, weight: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, *, shared: bool = False
) -> Tensor:
    """Apply a linear layer.

    Args:
        x: (n, ..., columns); shared: (..., columns).
        weight: (rows, columns).
        A: (n, rows, r).
        B: (n, columns, r).
        bias: (n, rows), or (rows,) for all members, or None.
        shared: whether all members have the same x.

    Returns:
        (n, ..., rows), its dimensions in memory in the order of those of x.

    Example:
        >>> x, W, b = torch.randn(5, 7, 3), torch.randn(4, 3), torch.randn(5, 4)
        >>> A, B = torch.randn(5, 4, 1), torch.randn(5, 3, 1)
        >>> member = F.linear(x[2], W + A[2] @ B[2].T, b[2])
        >>> torch.allclose(linear(x, W, A, B, b)[2], member, atol=1e-5)
        True
    """
    n, columns = len(A), x.shape[-1]
    first = 0 if shared else 1
    # rows of x in the order in which they lie in memory: a transposed x is not copied
    order = sorted(range(first, x.dim() - 1), key=x.stride, reverse=True)
    sizes = [x.shape[d] for d in order]
    ordered = x.permute(*range(first), *order, -1)
    if shared:
        rows = ordered.reshape(math.prod(sizes), columns)
        s = (B.mT.reshape(-1, columns) @ rows.T).view(n, -1, len(rows))
        main = F.linear(rows, weight)
        thin, corrections = _with_bias(s, A, bias)
        y = torch.baddbmm(main.expand(n, *main.shape), thin.mT, corrections.mT)
    else:
        rows = ordered.reshape(n, math.prod(sizes), columns)
        # transposed: several times as fast as x B, whose result has only r columns
        s = torch.bmm(B.mT.contiguous(), rows.mT)  # (n, r, M)
        thin, corrections = _with_bias(s, A, bias)
        # correction first, and the large product on top: memory is passed over once less
        y = torch.bmm(thin.mT, corrections.mT)
        y.view(-1, y.shape[-1]).addmm_(rows.view(-1, columns), weight.T)
    inverse = [1 + order.index(d) for d in range(first, x.dim() - 1)]
    return y.view(n, *sizes, y.shape[-1]).permute(0, *inverse, -1)


def _with_bias(s: Tensor, A: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Append a row of ones to s, (n, r, M), and the bias to A: both go on in one product."""
    if bias is None:
        return s, A
    n, _, m = s.shape
    column = bias.to(A.dtype).expand(n, A.shape[1]).unsqueeze(2)
    return torch.cat([s, s.new_ones(n, 1, m)], 1), torch.cat([A, column], 2)


def embedding(
    indices: Tensor, weight: Tensor, A: Tensor, B: Tensor, *, shared: bool = False
) -> Tensor:
    """Look up rows of a table.

    Args:
        indices: (n, ...) integers; shared: (...).
        weight: (rows, columns).
        A: (n, rows, r).
        B: (n, columns, r).
        shared: whether all members have the same indices.

    Returns:
        (n, ..., columns).

    Example:
        >>> W, A, B = torch.randn(9, 3), torch.randn(5, 9, 1), torch.randn(5, 3, 1)
        >>> found = embedding(torch.tensor([4, 4, 8]), W, A, B, shared=True)
        >>> torch.allclose(found[2, 1], (W + A[2] @ B[2].T)[4], atol=1e-5)
        True
    """
    n, rows, _ = A.shape
    sizes = indices.shape if shared else indices.shape[1:]
    if shared:
        indices = indices.reshape(-1)
        main = weight.index_select(0, indices).expand(n, -1, -1)
        thin = A.index_select(1, indices)
    else:
        indices = indices.reshape(n, -1)
        main = weight.index_select(0, indices.view(-1)).view(n, -1, weight.shape[1])
        starts = torch.arange(0, n * rows, rows, device=indices.device)
        thin = A.reshape(n * rows, -1).index_select(0, (indices + starts[:, None]).view(-1))
        thin = thin.view(n, -1, A.shape[2])
    return torch.baddbmm(main, thin, B.mT).view(n, *sizes, -1)


@_autocasts
def convolution(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *,
    shared: bool = False,
) -> Tensor:
    """Apply a convolution over two or three dimensions.

    Args:
        x: (n, b, channels, ...); shared: (b, channels, ...).
        weight: (rows, channels / groups, ...).
        A: (n, rows, r).
        B: (n, channels / groups * taps, r).
        bias: (n, rows), or (rows,) for all members, or None.
        stride: of each dimension.
        padding: of each dimension, zeros on both sides.
        dilation: of each dimension.
        groups: of channels.
        shared: whether all members have the same x.

    Returns:
        (n, b, rows, ...), in memory with channels last.

    Example:
        >>> x, W = torch.randn(5, 2, 4, 8, 8), torch.randn(6, 4, 3, 3)
        >>> A, B = torch.randn(5, 6, 1), torch.randn(5, 36, 1)
        >>> y = convolution(x, W, A, B, None, (1, 1), (1, 1), (1, 1), 1)
        >>> member = F.conv2d(x[2], W + (A[2] @ B[2].T).view_as(W), padding=1)
        >>> torch.allclose(y[2], member, atol=1e-4)
        True
    """
    n, (rows, channels, *taps), r = len(A), weight.shape, A.shape[2]
    layout = _LAYOUTS[len(taps)]
    convolve = functools.partial(
        _CONVOLUTIONS[len(taps)], stride=stride, padding=padding, dilation=dilation
    )
    x = (x if shared else x.flatten(0, 1)).contiguous(memory_format=layout)
    planes = math.prod(taps) * r <= channels  # no larger than x
    if groups > 1 and not shared and not planes:
        return _one_by_one(x, weight, A, B, bias, functools.partial(convolve, groups=groups))
    kernels = B.view(n, channels, *taps, r)
    y = convolve(x, weight, groups=groups)
    size = y.shape[2:]
    y = y.contiguous(memory_format=layout).movedim(1, -1)  # (n b, ..., rows)
    if shared:
        kernels = kernels.movedim(-1, 1).reshape(n * r, channels, *taps)
        s = convolve(x, kernels.repeat(groups, *[1] * (kernels.dim() - 1)), groups=groups)
        s = s.unflatten(1, (groups, n * r)).movedim(2, 0).movedim(2, -1)  # (n r, b, ..., groups)
        y = y.expand(n, *y.shape)
    elif planes:
        s = _by_planes(x.unflatten(0, (n, -1)), kernels, size, stride, padding, dilation)
    else:
        kernels = kernels.movedim(-1, 1)  # (n, r, channels, ...)
        found = [convolve(*pair) for pair in zip(x.chunk(n), kernels, strict=True)]
        s = torch.stack(found).transpose(1, 2)
    s = s.reshape(n, r, -1, groups)  # groups last
    y = y.reshape(n, s.shape[2], rows)
    y = _corrected(y, s, A, bias, in_place=not shared)
    return y.view(n, -1, *size, rows).movedim(-1, 2)


def _by_planes(
    x: Tensor,
    kernels: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolve each member's x with its r kernels: a plane for each tap, shifted and added.

    Args:
        x: (n, b, channels, ...), channels last in memory.
        kernels: (n, channels of a group, ..., r).
        size: of the result.
        stride: as for `convolution`.
        padding: as for `convolution`.
        dilation: as for `convolution`.

    Returns:
        (n, r b, ..., groups).
    """
    n, channels, *taps, r = kernels.shape
    thin = kernels.movedim(1, -1).reshape(n, math.prod(taps) * r, channels)
    positions = x.movedim(2, -1).reshape(n, -1, channels)  # of b, ..., groups
    planes = torch.bmm(thin, positions.mT)
    planes = planes.view(n, *taps, r * x.shape[1], *x.shape[3:], x.shape[2] // channels)
    s = planes.new_zeros(n, r * x.shape[1], *size, planes.shape[-1])
    every = slice(None)
    for tap in itertools.product(*map(range, taps)):
        windows = [
            _window(*one)
            for one in zip(tap, x.shape[3:], size, stride, padding, dilation, strict=True)
        ]
        if all(windows):
            into, from_ = zip(*windows, strict=True)
            s[every, every, *into].add_(planes[every, *tap, every, *from_])
    return s


def _window(
    tap: int, size_in: int, size_out: int, stride: int, padding: int, dilation: int
) -> tuple[slice, slice] | None:
    """Return the outputs to which a tap adds, and the inputs that it adds; None: only padding."""
    offset = tap * dilation - padding
    first = max(0, -(offset // stride))
    last = min(size_out - 1, (size_in - 1 - offset) // stride)
    if last < first:
        return None
    begin = first * stride + offset
    return slice(first, last + 1), slice(begin, begin + (last - first) * stride + 1, stride)


def _corrected(y: Tensor, s: Tensor, A: Tensor, bias: Tensor | None, *, in_place: bool) -> Tensor:
    """Add A s and the bias to y, (n, M, rows), where s is (n, r, M, groups)."""
    n, _, m, groups = s.shape
    if groups == 1:
        thin, corrections = _with_bias(s.squeeze(3), A, bias)
        if in_place:
            return y.baddbmm_(thin.mT, corrections.mT)
        return torch.baddbmm(y, thin.mT, corrections.mT)
    if not in_place:
        y = y.contiguous()
    if bias is not None:
        y.add_(bias.unsqueeze(-2))
    parts = y.view(n, m, groups, -1)
    for i in range(s.shape[1]):
        parts.addcmul_(s[:, i].unsqueeze(-1), A[:, :, i].view(n, 1, groups, -1))
    return y


def _one_by_one(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    convolve: Callable[..., Tensor],
) -> Tensor:
    """Convolve the members one after the other, each with its own weight.

    For groups of few channels, depthwise ones above all: the weight is small, and the thin part
    of the convolution would cost as much as the whole. One member's weight is built at a time.
    """
    n = len(A)
    biases = [None] * n if bias is None else bias.expand(n, A.shape[1])
    found = [
        convolve(part, weight + (a @ b.T).view_as(weight), one).movedim(1, -1)
        for part, a, b, one in zip(x.chunk(n), A, B, biases, strict=True)
    ]
    return torch.stack(found).movedim(-1, 2)
