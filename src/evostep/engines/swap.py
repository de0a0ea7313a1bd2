"""Other tensors in the place of a model's own, for the time of a forward.

`torch.func.functional_call` does the same, but leaves a foreign tensor behind where a module that
stands in two places holds the weight (torch 2.14).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


def places(model: nn.Module, live: Mapping[str, Tensor]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Give where a model holds each tensor, (module, attribute): several for tied weights.

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
        where: what `places` gave.
        tensors: name -> what to put there; other names keep the model's own.
    """
    own: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
    try:
        for name, tensor in tensors.items():
            for module, key in where[name]:
                held: dict[str, Tensor | None] = (
                    module._parameters if key in module._parameters else module._buffers  # type: ignore[assignment]
                )
                own.append((held, key, held[key]))
                held[key] = tensor
        yield
    finally:
        for held, key, before in reversed(own):
            held[key] = before
