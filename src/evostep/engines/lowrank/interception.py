"""Calls of layers are met on their way, and see each member's weights: W + A B^T.

The parameter itself stays in the model. Within `ThinLayers` every function of torch that receives
it is stopped: a linear, convolution, embedding or attention function is computed from the shared
weight and the thin factors, by the rule that there is for it (`rules`); any other is refused, never
run with the shared weight alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from evostep.engines.base import CannotScore
from evostep.engines.swap import HARMLESS
from evostep.scoring.nests import leaves


@dataclass(frozen=True)
class Thin:
    """A weight and one member's factors, within vmap.

    Attributes:
        name: of the parameter.
        weight: the parameter itself.
        A: (rows, r), where the weight is a matrix of its first dimension x all others.
        B: (columns, r).
    """

    name: str
    weight: Tensor
    A: Tensor
    B: Tensor


class Layouts:
    """Shared weights in the form in which a product reads them, made once for all members."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def get(self, weight: Tensor, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """Return what `make` gave when it was first called for this weight and key."""
        whole = (id(weight), key, torch.is_autocast_enabled(weight.device.type))
        if whole not in self._made:
            self._made[whole] = make()
        return self._made[whole]


class ThinLayers(TorchFunctionMode):
    """Within it, in a function that is vmapped over members, layers have the members' weights.

    Args:
        thin: the weights that members share, with one member's factors.
        replaced: the parameters for which the model holds a member's own tensor; that one of them
            is used nevertheless means that the model reaches it by another way.
        rules: function of torch -> how it is computed, ``(call, *args, **kwargs)``; what gives
            NotImplemented is computed as torch does.
        layouts: of the shared weights, for all calls.
        contiguous: whether convolutions give contiguous tensors; else channels are last in
            memory, which is faster, but some views are impossible.

    Attributes:
        widest: bytes of the largest tensor of one member that any call gave.
    """

    def __init__(
        self,
        thin: Iterable[Thin],
        replaced: Mapping[str, Tensor],
        rules: Mapping[Any, Callable[..., Any]],
        layouts: Layouts,
        *,
        contiguous: bool = False,
    ) -> None:
        super().__init__()
        self.thin = {id(one.weight): one for one in thin}
        self.layouts = layouts
        self.contiguous = contiguous
        self.widest = 0
        self._rules = rules
        self._watched = {id(tensor): name for name, tensor in replaced.items()}
        self._watched |= {key: one.name for key, one in self.thin.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute a call; raises CannotScore where that is impossible."""
        kwargs = kwargs or {}
        call = Call(self, func, self._among((*args, *kwargs.values())))
        rule = self._rules.get(func)
        out = rule(call, *args, **kwargs) if rule is not None else NotImplemented
        if out is NotImplemented:
            if call.uses and func not in HARMLESS:
                if func not in _PERHAPS_NOTHING:
                    raise call.refusal()
                if (out := func(*args, **kwargs)) is args[0]:
                    return out
                raise call.refusal()
            out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.widest = max(self.widest, out.numel() * out.element_size())
        return out

    def _among(self, values: Iterable[Any]) -> set[int]:
        """Return the watched tensors among values, and in lists, tuples and dictionaries."""
        return {id(leaf) for value in values for leaf in leaves(value) if id(leaf) in self._watched}

    def name_of(self, key: int) -> str:
        """Return the name of a watched tensor."""
        return self._watched[key]


@dataclass(frozen=True)
class Call:
    """A call of a function, and the watched tensors that it uses."""

    layers: ThinLayers
    func: Callable[..., Any]
    uses: set[int]

    def refusal(self) -> CannotScore:
        """Return the error for a function that no rule is for."""
        name = self.layers.name_of(min(self.uses, key=self.layers.name_of))
        layer = name.rpartition(".")[0]
        where = f"layer {layer!r}" if layer else "the model"
        function = resolve_name(self.func) or getattr(self.func, "__name__", repr(self.func))
        return CannotScore(
            f"{where}: {function} uses {name!r} in a way in which members cannot share it"
        )

    def only(self, *weights: Any) -> list[Thin | None]:
        """Return the thin weights among these; refuse where another argument is one, too."""
        found = [self.layers.thin.get(id(weight)) for weight in weights]
        if self.uses - {id(one.weight) for one in found if one is not None}:
            raise self.refusal()
        return found


# what gives the weight itself where there is nothing to do
_PERHAPS_NOTHING: frozenset[Any] = frozenset(
    [
        *(Tensor.to, Tensor.contiguous, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half),
        *(Tensor.bfloat16, Tensor.cpu, Tensor.cuda),
    ]
)
