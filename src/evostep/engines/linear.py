"""Linear layers of many members at once, features before examples.

A member's layer is often narrow: 300 examples times 32 features, times a matrix of 32 by 10. As
x W^T, which is what `torch.vmap` makes of it, such a product is several times slower than as
W x^T (benchmarks/engines.py, case vmap-mlp). The result is the transposed view of that, so that the
next layer finds its input as it needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_DRAWING = (torch.rand_like, torch.randn_like, torch.randint_like)


class LinearOfMembers(TorchFunctionMode):
    """Within it, in a function that is vmapped over members, linear layers are computed so.

    Only those whose inputs are the rows of a matrix: sequences are viewed in more ways than a
    transposed tensor allows. `torch.nn.functional.linear` is the slow twin.

    Args:
        own: what members have of their own, as the vmapped function gets it.
        contiguous: whether layers return contiguous tensors, as torch's do.

    Example:
        >>> x, weights = torch.ones(5, 2), torch.ones(3, 4, 2)
        >>> def layer(weight):
        ...     with LinearOfMembers([weight]):
        ...         return F.linear(x, weight)
        >>> torch.vmap(layer)(weights).shape
        torch.Size([3, 5, 4])
    """

    def __init__(self, own: Iterable[Tensor], *, contiguous: bool = False) -> None:
        super().__init__()
        self._own = {id(tensor) for tensor in own}
        self._contiguous = contiguous

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute a call."""
        kwargs = kwargs or {}
        if func in _DRAWING:  # in the order of memory, which is that of torch's layers
            kwargs = {"memory_format": torch.contiguous_format, **kwargs}
        out = self._linear(*args, **kwargs) if func is F.linear else None
        return func(*args, **kwargs) if out is None else out

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """Return x W^T + b; None: as torch does, where members share W, and under autocast."""
        if id(weight) not in self._own or weight.dim() != 2 or input.dim() != 2:
            return None
        alike = input.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype)
        if not alike or torch.is_autocast_enabled(input.device.type):
            return None
        out = torch.mm(weight, input.T)
        if bias is not None:
            out.add_(bias.unsqueeze(-1))
        return out.T.contiguous() if self._contiguous else out.T
