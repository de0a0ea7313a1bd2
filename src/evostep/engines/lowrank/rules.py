"""Which functions of torch are computed from thin weights, or faster under vmap, and how.

Each rule has the arguments of the functions that it stands for; NotImplemented: as torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evostep.engines.lowrank.attention import attention, multi_head_attention
from evostep.engines.lowrank.convolution import convolution, each
from evostep.engines.lowrank.interception import Call
from evostep.engines.lowrank.operators import thin_embedding, thin_linear


def _linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    (thin,) = call.only(weight)
    if thin is None:
        return NotImplemented
    return thin_linear(input, weight, thin.A, thin.B, bias)


def _matmul(call: Call, input: Tensor, other: Tensor) -> Any:
    """Take x W: the transposed weight with the factors' parts exchanged."""
    (thin,) = call.only(other)
    if thin is None or other.dim() != 2:
        return NotImplemented
    return thin_linear(input, other.T, thin.B, thin.A, None)


def _addmm(
    call: Call, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    (thin,) = call.only(mat2)
    if thin is None or input.dim() != 1 or beta != 1 or alpha != 1:
        return NotImplemented
    return thin_linear(mat1, mat2.T, thin.B, thin.A, input)


def _embedding(
    call: Call,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,  # matters to gradients alone  # noqa: ARG001 - as torch calls it
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001 - as torch calls it
    scale_grad_by_freq: bool = False,  # noqa: ARG001 - as torch calls it
    sparse: bool = False,  # noqa: ARG001 - as torch calls it
) -> Any:
    (thin,) = call.only(weight)
    if thin is None or max_norm is not None:  # it would write into the shared weight
        return NotImplemented
    return thin_embedding(input, weight, thin.A, thin.B)


def _layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if call.uses or weight is None:
        return NotImplemented
    # torch's loop is the slower one where there is no weight
    one = torch.ones(*normalized_shape, dtype=weight.dtype, device=weight.device)
    normal = F.layer_norm(input, normalized_shape, one, torch.zeros_like(one), eps)
    return _scaled(normal, weight, bias)


def _group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if call.uses or weight is None:
        return NotImplemented
    ones = (-1, *[1] * (input.dim() - 2))
    normal = F.group_norm(input, num_groups, eps=eps)
    return _scaled(normal, weight.view(ones), None if bias is None else bias.view(ones))


def _batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001 - as torch calls it
    eps: float = 1e-5,
) -> Any:
    if call.uses or training or running_mean is None or running_var is None or weight is None:
        return NotImplemented
    scale = weight * torch.rsqrt(running_var + eps)
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    ones = (-1, *[1] * (input.dim() - 2))
    return _scaled(input, scale.view(ones), shift.view(ones))


def _mean_pool(call: Call, input: Tensor, output_size: Any) -> Any:
    """Pool to one value; torch's own fixes strides in a way that vmap does member by member."""
    if call.uses or not all(size == 1 for size in each(output_size, 1)):
        return NotImplemented
    return input.mean((-2, -1), keepdim=True)


def _scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Scale and shift in one pass, in the type of x."""
    if shift is None:
        return x * scale.to(x.dtype)
    return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


def _add(call: Call, input: Any, other: Any, *, alpha: float = 1) -> Any:
    """Add a weight, such as a table of positions, to something that is at least as large."""
    terms = [input, other]
    for i, thin in enumerate(call.only(*terms)):
        rest = terms[1 - i]
        if thin is None:
            continue
        if not isinstance(rest, Tensor) or rest.numel() < thin.weight.numel() or rest is terms[i]:
            return NotImplemented
        terms[i] = _dense(thin.weight, thin.A, thin.B)
    return (
        call.func(*terms, alpha=alpha)
        if call.uses and alpha != 1
        else call.func(*terms)
        if call.uses
        else NotImplemented
    )


def _dense(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return torch.addmm(weight.flatten(1), A, B.T).view(weight.shape)


RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.embedding: _embedding,
    torch.conv1d: convolution(1),
    torch.conv2d: convolution(2),
    torch.conv3d: convolution(3),
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: multi_head_attention,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.adaptive_avg_pool2d: _mean_pool,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
}
