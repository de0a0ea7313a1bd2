"""Linear layers of many members at once, features before examples.

A member's layer is often narrow: 300 examples times 32 features, times a matrix of 32 by 10. As
x W^T, which is what `torch.vmap` makes of it, such a product is several times slower than as
W x^T (benchmarks/engines.py, case vmap-mlp). The result is the transposed view of that, so that the
next layer finds its input as it needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def linear_of_members(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Give x W^T + b of each member.

    Args:
        x: (n, examples, columns), or (examples, columns) where all members have the same.
        weight: (n, rows, columns).
        bias: (n, rows), or None.

    Returns:
        (n, examples, rows), a transposed view.

    Example:
        >>> x, weight = torch.ones(5, 2), torch.ones(3, 4, 2)
        >>> linear_of_members(x, weight, None).shape
        torch.Size([3, 5, 4])
    """
    out: Tensor
    if x.dim() == 2:
        out = torch.mm(weight.flatten(0, 1), x.T).unflatten(0, weight.shape[:2])
    else:
        out = torch.bmm(weight, x.mT)
    if bias is not None:
        out += bias.unsqueeze(-1)
    return out.mT


@torch.library.custom_op(
    "evostep::linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


@_linear.register_vmap
def _linear_of_members(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, int]:
    n = info.batch_size

    def first(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(n, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    if in_dims[0] is not None:
        x = x.movedim(in_dims[0], 0)
    bias = None if bias is None else first(bias, in_dims[2])
    return linear_of_members(x, first(weight, in_dims[1]), bias), 0


class LinearOfMembers(TorchFunctionMode):
    """Within it, in a function that is vmapped over members, linear layers are computed so.

    Args:
        contiguous: whether they give contiguous tensors, as torch's do.
    """

    def __init__(self, contiguous: bool = False) -> None:
        super().__init__()
        self._contiguous = contiguous

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute a call."""
        if func is F.linear and _takes(*args, **(kwargs or {})):
            out = _call(*args, **(kwargs or {}))
            return out.contiguous() if self._contiguous else out
        return func(*args, **(kwargs or {}))


def _takes(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Say whether it is rows of one type: autocast casts, and sequences are viewed in many ways."""
    alike = bias is None or bias.dtype == weight.dtype
    return (
        input.dim() == 2
        and weight.dim() == 2
        and input.dtype == weight.dtype
        and alike
        and not torch.is_autocast_enabled(input.device.type)
    )


def _call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = _linear(input, weight, bias)
    return out
