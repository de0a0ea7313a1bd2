"""Where in a model the tensors are that move, and whether the others have changed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evostep.engines.prefix.replay import key_of, storage_of
from evostep.genome.slots import version


class Layout:
    """Which tensors of a model move, and in which modules nothing does.

    Args:
        model: whose forward pass is looked at.
        live: name -> tensor, those that move.

    Attributes:
        root: the model's name.
        names: of the modules in which nothing moves.
        moving: keys of the tensors that move -> their names.
        lasting: keys of the parameters and buffers that do not -> themselves.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> Layout(model, {"2.weight": model[2].weight}).names
        {Linear(in_features=2, out_features=2, bias=True): '0', ReLU(): '1'}
    """

    def __init__(self, model: nn.Module, live: Mapping[str, Tensor]) -> None:
        self.root = type(model).__name__
        keys = {key_of(tensor): name for name, tensor in live.items()}
        self.moving: dict[int, str] = {}
        self.lasting: dict[int, Tensor] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            key = key_of(tensor)
            if key is not None and key in keys:
                self.moving[key] = keys[key]
            elif key is not None:
                self.lasting[key] = tensor
        self._holds: dict[nn.Module, bool] = {}
        self._look(model)
        paths = list(model.named_modules())
        self.names = {module: path for path, module in paths if not self._holds[module]}
        layers = [m for _, m in paths if not list(m.children()) and list(m.parameters())]
        self._first = layers[0] if layers else model

    def _look(self, module: nn.Module) -> bool:
        """Find out whether something moves in a module."""
        if module not in self._holds:
            own = (*module._parameters.values(), *module._buffers.values())
            moves = [key_of(tensor) in self.moving for tensor in own if tensor is not None]
            moves += [self._look(child) for child in module.children()]
            self._holds[module] = any(moves)
        return self._holds[module]

    def refusal(self) -> str | None:
        """Return why there is nothing to replay, as far as the order of the layers tells."""
        if not self.moving:
            return f"{self.root} holds none of the tensors that move"
        if self._holds[self._first]:
            return f"the space moves the first layer of {self.root}: nothing comes before it"
        return None

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells this layout from another one."""
        return tuple(map(id, self._holds)), tuple(self.moving), tuple(self.lasting)

    @torch.no_grad()
    def contents(self) -> list[object]:
        """Return what changes when a tensor that does not move is written to, also behind torch.

        A tensor's counter tells most writes, but not those through ``.data``; and that of a buffer
        also counts when scoring puts it back. So bits are summed, too.
        """
        sums = [_sum_of_bits(tensor) for tensor in self.lasting.values()]
        first = sums[0].device if sums else None
        bits = torch.stack([one.to(first) for one in sums]).tolist() if sums else []
        forms: list[object] = [
            (tensor.shape, tensor.dtype, version(tensor) if isinstance(tensor, nn.Parameter) else 0)
            for tensor in self.lasting.values()
        ]
        return forms + bits


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Sum the memory behind a tensor as integers of 64 bits, and what is left over as bytes."""
    storage = storage_of(tensor)
    assert storage is not None, "it has a key"
    size = storage.nbytes()
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    flat.set_(storage, 0, (size,), (1,))
    whole = size - size % 8
    return flat[:whole].view(torch.int64).sum() + flat[whole:].long().sum()
