"""Other tensors in the place of a model's own, for the time of a forward.

`torch.func.functional_call` does the same, but leaves a foreign tensor behind where a module that
stands in two places holds the weight (torch 2.14).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evostep.engines.base import CannotScore
from evostep.interrupts import Undoing
from evostep.scoring.nests import leaves

# what only tells what a weight is like
HARMLESS: frozenset[Any] = frozenset(
    [
        *(
            getattr(Tensor, attribute).__get__
            for attribute in (
                *("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf"),
                *("is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta", "is_mkldnn"),
                *("is_nested", "is_quantized", "is_sparse", "itemsize", "nbytes"),
            )
        ),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.stride),
        *(Tensor.is_contiguous, Tensor.element_size, Tensor.get_device, Tensor.__len__),
        *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex),
        *(torch.numel, Tensor.data_ptr),
    ]
)


def places(model: nn.Module, live: Mapping[str, Tensor]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return where a model holds each tensor, (module, attribute): several for tied weights.

    Args:
        model: whose modules are searched.
        live: name -> the tensor itself; those that the model does not hold are left out.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> places(layer, {"w": layer.weight})
        {'w': [(Linear(in_features=2, out_features=1, bias=True), 'weight')]}
    """
    names = {id(tensor): name for name, tensor in live.items()}
    found: dict[str, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():  # each once, in however many places it stands
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None and id(tensor) in names:
                    found.setdefault(names[id(tensor)], []).append((module, key))
    return found


@contextmanager
def swapped(
    where: Mapping[str, list[tuple[nn.Module, str]]], tensors: Mapping[str, Tensor]
) -> Iterator[None]:
    """Put tensors in the places of the model's own, and these back, whatever is raised.

    Args:
        where: what `places` returned.
        tensors: name -> what to put there; other names keep the model's own.
    """
    own: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []

    def put_back() -> None:
        for held, key, before in reversed(own):
            held[key] = before

    with Undoing(put_back):
        for name, tensor in tensors.items():
            for module, key in where[name]:
                held: dict[str, Tensor | None] = (
                    module._parameters if key in module._parameters else module._buffers  # type: ignore[assignment]
                )
                own.append((held, key, held[key]))
                held[key] = tensor
        yield


class SwappedOut(TorchFunctionMode):
    """Within it, a model that uses one of these tensors nevertheless cannot be scored.

    It reaches the tensor by another way than through the module that holds it, such as a list, and
    would compute with the center's weights. What only asks for a shape or a type may do so.

    Args:
        tensors: name -> tensor, those that are swapped out.

    Raises:
        CannotScore: at the call that uses one.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a call that uses none of them."""
        kwargs = kwargs or {}
        if func not in HARMLESS:
            self._check((*args, *kwargs.values()))
        return func(*args, **kwargs)

    def _check(self, values: Iterable[Any]) -> None:
        for leaf in leaves(tuple(values)):
            if id(leaf) in self._names:
                raise CannotScore(
                    f"the model uses {self._names[id(leaf)]!r} by another way than through the "
                    "module that holds it"
                )
