"""The rules of attention: heads of all members in one batch, projections from thin weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evostep.engines.lowrank.interception import Call
from evostep.engines.lowrank.operators import merged_attention, thin_linear


def attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attend with the heads of all members as one batch."""
    if call.uses or dropout_p > 0:
        return NotImplemented
    return merged_attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)


def multi_head_attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Compute what `nn.MultiheadAttention` does, but for its rarer options."""
    rare = (bias_k, bias_v, static_k, static_v)
    if any(one is not None for one in rare) or add_zero_attn or (training and dropout_p > 0):
        return NotImplemented
    if is_causal and attn_mask is None:
        return NotImplemented  # an error of the caller's
    call.only(in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, out_proj_weight)
    batched = query.dim() == 3
    if not batched:
        same = key is query, value is key
        query = query.unsqueeze(1)
        key = query if same[0] else key.unsqueeze(1)
        value = key if same[1] else value.unsqueeze(1)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    weights = (
        [(w, slice(None)) for w in (q_proj_weight, k_proj_weight, v_proj_weight)]
        if use_separate_proj_weight
        else [
            (in_proj_weight, slice(i * embed_dim_to_check, (i + 1) * embed_dim_to_check))
            for i in range(3)
        ]
    )
    if query is key and key is value and not use_separate_proj_weight:
        packed = _project(call, query, in_proj_weight, slice(None), in_proj_bias)
        q, k, v = packed.chunk(3, -1)
    else:
        biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (
            _project(call, x, weight, rows, bias)
            for x, (weight, rows), bias in zip((query, key, value), weights, biases, strict=True)
        )
    # (length, batch, heads * d) -> (batch, heads, length, d)
    q, k, v = (t.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
    mask = _mask(attn_mask, key_padding_mask, q, k)
    shares = None
    if need_weights:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        shares = (scores if mask is None else scores + mask).softmax(-1)
        out = shares @ v
        shares = shares.mean(1) if average_attn_weights else shares
        shares = shares if batched else shares.squeeze(0)
    else:
        out = merged_attention(q, k, v, mask, False, None, False)
    out = out.permute(2, 0, 1, 3).flatten(2)
    out = _project(call, out, out_proj_weight, slice(None), out_proj_bias)
    return (out if batched else out.squeeze(1)), shares


def _project(call: Call, x: Tensor, weight: Any, rows: slice, bias: Tensor | None) -> Tensor:
    """Apply some rows of a weight, thin or not."""
    thin = call.layers.thin.get(id(weight))
    if thin is None:
        return F.linear(x, weight[rows], bias)
    out: Tensor = thin_linear(x, thin.weight[rows], thin.A[rows], thin.B, bias)
    return out


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:  # noqa: ARG001 - as torch calls it
    """Join the masks of `nn.MultiheadAttention` to one that is added to the scores."""

    def added(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(q.dtype)
        zeros = torch.zeros(mask.shape, dtype=q.dtype, device=mask.device)
        return zeros.masked_fill(mask, -math.inf)

    mask = None
    if attn_mask is not None:
        mask = added(attn_mask)
        if mask.dim() == 3:  # (batch * heads, L, S)
            mask = mask.view(q.shape[0], q.shape[1], *mask.shape[1:])
        else:
            mask = mask[None, None]
    if padding is not None:
        lengths = added(padding)[:, None, None]
        mask = lengths.expand(-1, -1, q.shape[2], -1) if mask is None else mask + lengths
    return mask
