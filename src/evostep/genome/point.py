"""Where a model stands, in coordinates: a dictionary of named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

# A tensor that starts at zero (a bias, the last gain of a residual block) has no scale of its own;
# without a floor a relative sigma would never move it.
RMS_FLOOR = 0.01


class Coordinates(Protocol):
    """Yields coordinate tensors on demand: a member, or a stepped center."""

    def tensor(self, name: str) -> Tensor:
        """Return the coordinates called `name`; the caller must not change them."""


@dataclass(frozen=True)
class Tensors:
    """Coordinates that exist already, such as a center's."""

    values: Mapping[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        """Return the tensor itself."""
        return self.values[name]


@dataclass
class Genome:
    """Where the model stands, in coordinates.

    Attributes:
        center: name -> coordinates. Detached: the one copy from which weights are restored.
        sigma: name -> the standard deviation that replaces the strategy's there, in its unit; None
            where the strategy's holds; 0 for coordinates that must not move.
        guides: directions that are likely to matter, each name -> a tensor of the center's shape
            (a name that is missing: zeros); gradients, of whatever length.
    """

    center: dict[str, Tensor]
    sigma: Mapping[str, float | None]
    _rms: dict[str, float] | None = field(default=None, repr=False)
    guides: tuple[Mapping[str, Tensor], ...] = ()
    _gram: dict[str, Tensor] | None = field(default=None, repr=False)

    @property
    def rms(self) -> dict[str, float]:
        """Name -> root mean square of the center's tensor, at least `RMS_FLOOR`."""
        if self._rms is None:
            self._rms = root_mean_square(self.center)
        return self._rms

    @property
    def gram(self) -> dict[str, Tensor]:
        """Name -> (k, k) float64, the inner products of the k guides' tensors of that name."""
        if self._gram is None:
            self._gram = {name: inner_products(self.guides, name) for name in self.center}
        return self._gram

    @torch.no_grad()
    def move(self, coordinates: Coordinates) -> None:
        """Move the center, in place."""
        for name, tensor in self.center.items():
            tensor.copy_(coordinates.tensor(name))
        self._rms = None


def root_mean_square(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return each tensor's root mean square, at least `RMS_FLOOR`, with one transfer to the host.

    Example:
        >>> root_mean_square({"w": torch.tensor([3.0, -3.0]), "b": torch.zeros(2)})
        {'w': 3.0, 'b': 0.01}
    """
    if not tensors:
        return {}
    squares = [tensor.detach().double().square().mean() for tensor in tensors.values()]
    device = squares[0].device
    values = torch.stack([square.to(device) for square in squares]).sqrt().tolist()
    return {name: max(value, RMS_FLOOR) for name, value in zip(tensors, values, strict=True)}


def inner_products(directions: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """Return the inner products of the tensors called `name`, (k, k) float64 on the host.

    Example:
        >>> inner_products([{"w": torch.ones(4)}, {}], "w").tolist()
        [[4.0, 0.0], [0.0, 0.0]]
    """
    products = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for i, one in enumerate(directions):
        if name not in one:
            continue
        vector = one[name].detach().double().flatten()
        for j, other in enumerate(directions[: i + 1]):
            if name in other:
                products[i, j] = vector @ other[name].detach().double().flatten()
                products[j, i] = products[i, j]
    return products
