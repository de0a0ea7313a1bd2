"""The thin layers as torch operators, which `torch.vmap` batches over members.

A function that is vmapped over members meets one member's tensors; an operator's rule gets those of
all members, and calls the function of `thin` for them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evostep.engines.lowrank.thin import convolution, embedding, linear


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    grouped: bool,
) -> Tensor:
    """Attend, over any leading dimensions: `F.scaled_dot_product_attention` as one batch.

    Args:
        query: (..., heads, L, E), and key and value alike.
        key: see `query`.
        value: see `query`.
        mask: (..., L, S), its leading dimensions those of the query, or all 1; or None.
        is_causal: as torch has it, and so is `scale`.
        scale: of the scores.
        grouped: whether several heads of the query share one of the key (``enable_gqa``).

    Returns:
        (..., heads, L, E).
    """
    out = F.scaled_dot_product_attention(
        _merged(query),
        _merged(key),
        _merged(value),
        attn_mask=None if mask is None else _merged(mask),
        is_causal=is_causal,
        scale=scale,
        enable_gqa=grouped,
    )
    return out.view(*query.shape[:-1], out.shape[-1])


def _merged(tensor: Tensor) -> Tensor:
    """Make it four dimensions, of which the first two are not mixed up."""
    while tensor.dim() < 4:
        tensor = tensor.unsqueeze(-3)
    return tensor.flatten(0, -4)


def _members_first(tensor: Tensor | None, dim: int | None) -> Tensor | None:
    return tensor if tensor is None or dim is None else tensor.movedim(dim, 0)


def _operator(name: str, schema: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make an operator ``(x, weight, A, B, ...)`` that vmap batches by `function`."""

    def single(x: Tensor, weight: Tensor, A: Tensor, B: Tensor, *rest: Any) -> Tensor:
        return function(x, weight, A.unsqueeze(0), B.unsqueeze(0), *rest, shared=True).squeeze(0)

    operator = torch.library.custom_op(f"evostep::{name}", single, mutates_args=(), schema=schema)

    def batched(  # torch names its arguments
        info: Any,  # noqa: ARG001
        in_dims: tuple[Any, ...],
        *inputs: Any,
    ) -> tuple[Tensor, int]:
        if in_dims[1] is not None or in_dims[2] is None or in_dims[3] is None:
            raise NotImplementedError(f"{name} inside another vmap")
        moved = [
            _members_first(value, dim) if isinstance(value, Tensor) else value
            for value, dim in zip(inputs, in_dims, strict=True)
        ]
        return function(*moved, shared=in_dims[0] is None), 0

    operator.register_vmap(batched)
    return operator


thin_linear = _operator(
    "thin_linear", "(Tensor x, Tensor weight, Tensor A, Tensor B, Tensor? bias) -> Tensor", linear
)
thin_embedding = _operator(
    "thin_embedding", "(Tensor indices, Tensor weight, Tensor A, Tensor B) -> Tensor", embedding
)
thin_convolution = _operator(
    "thin_convolution",
    "(Tensor x, Tensor weight, Tensor A, Tensor B, Tensor? bias, int[] stride, int[] padding, "
    "int[] dilation, int groups) -> Tensor",
    convolution,
)

merged_attention = torch.library.custom_op(
    "evostep::merged_attention",
    attention,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? mask, bool is_causal, float? scale, "
    "bool grouped) -> Tensor",
)


@merged_attention.register_vmap
def _attention_of_members(
    info: Any,
    in_dims: tuple[Any, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *options: Any,
) -> tuple[Tensor, int]:
    n = info.batch_size
    query, key, value = (
        tensor.expand(n, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip((query, key, value), in_dims, strict=False)
    )
    if mask is not None:
        mask = mask.unsqueeze(0) if in_dims[3] is None else mask.movedim(in_dims[3], 0)
        while mask.dim() < query.dim():
            mask = mask.unsqueeze(1)
        if mask.shape[:-3].numel() > 1:
            mask = mask.expand(*query.shape[:-3], *mask.shape[-3:])
    return attention(query, key, value, mask, *options), 0
