"""Where in a model the tensors are that move, and whether the others have changed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from evostep.genome.memory import key_of, storage_of
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
        refusal: why there is nothing to replay, as far as the order of the layers tells; or None.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> Layout(model, {"2.weight": model[2].weight}).names
        {Linear(in_features=2, out_features=2, bias=True): '0', ReLU(): '1'}
    """

    def __init__(self, model: nn.Module, live: Mapping[str, Tensor]) -> None:
        self.root = type(model).__name__
        live_names = {key_of(tensor): name for name, tensor in live.items()}
        keys = {tensor: key_of(tensor) for tensor in chain(model.parameters(), model.buffers())}
        self.moving = {k: live_names[k] for k in keys.values() if k is not None and k in live_names}
        self.lasting = {
            k: tensor for tensor, k in keys.items() if k is not None and k not in live_names
        }

        def moves(module: nn.Module) -> bool:
            held = chain(module.parameters(), module.buffers())
            return any(keys[tensor] in self.moving for tensor in held)

        self.names = {module: path for path, module in model.named_modules() if not moves(module)}
        self._modules = list(model.modules())
        layers = (m for m in self._modules if not list(m.children()) and list(m.parameters()))
        self.refusal: str | None = None
        if not self.moving:
            self.refusal = f"{self.root} holds none of the tensors that move"
        elif next(layers, model) not in self.names:
            self.refusal = (
                f"the space moves the first layer of {self.root}: nothing comes before it"
            )

    @torch.no_grad()
    def signature(self) -> list[object]:
        """Return what changes when the model does, but for what moves; also behind torch.

        A tensor's counter tells most writes, but not those through ``.data``; and that of a buffer
        also counts when scoring puts it back. So bits are summed, too.
        """
        sums = [_sum_of_bits(tensor) for tensor in self.lasting.values()]
        bits = torch.stack([one.to(sums[0].device) for one in sums]).tolist() if sums else []
        forms = [
            (tensor.shape, tensor.dtype, version(tensor) if isinstance(tensor, nn.Parameter) else 0)
            for tensor in self.lasting.values()
        ]
        return [*map(id, self._modules), *self.moving, *self.lasting, *forms, *bits]


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Sum the memory behind a tensor as integers of 64 bits, and what is left over as bytes."""
    storage = storage_of(tensor)
    assert storage is not None, "it has a key"
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    flat.set_(storage, 0, (storage.nbytes(),), (1,))
    whole = len(flat) - len(flat) % 8
    return flat[:whole].view(torch.int64).sum() + flat[whole:].long().sum()
