"""Where a model stands, in coordinates: a dictionary of named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
        fixed: name -> bool, broadcastable to the center's tensor, True for coordinates that stand
            still in a tensor whose others move; missing: all move.
    """

    center: dict[str, Tensor]
    sigma: Mapping[str, float | None]
    _rms: dict[str, float] | None = field(default=None, repr=False)
    guides: tuple[Mapping[str, Tensor], ...] = ()
    _gram: dict[str, Tensor] | None = field(default=None, repr=False)
    fixed: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rms(self) -> dict[str, float]:
        """Name -> root mean square of the center's tensor, at least `RMS_FLOOR`."""
        if self._rms is None:
            self._rms = root_mean_square(self.center, self.fixed)
        return self._rms

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Name -> how many coordinates may move."""
        return {name: z.numel() - self._still(name) for name, z in self.center.items()}

    def _still(self, name: str) -> int:
        fixed = self.fixed.get(name)
        return 0 if fixed is None else int(fixed.expand_as(self.center[name]).sum())

    def confine_(self, name: str, noise: Tensor) -> Tensor:
        """Set noise, (..., *shape of the center), to zero in place where nothing may move.

        Example:
            >>> genome = Genome({"w": torch.ones(2)}, {"w": None})
            >>> genome.fixed = {"w": torch.tensor([True, False])}
            >>> genome.confine_("w", torch.ones(3, 2)).sum(0).tolist()
            [0.0, 3.0]
        """
        fixed = self.fixed.get(name)
        return noise if fixed is None else noise.masked_fill_(fixed, 0.0)

    def confined(self, name: str, direction: Tensor) -> Tensor:
        """Return a direction without the coordinates that stand still: itself where all move."""
        fixed = self.fixed.get(name)
        return direction if fixed is None else direction.masked_fill(fixed, 0.0)

    def at(self, center: dict[str, Tensor]) -> Genome:
        """Return the genome of another center; guides stay behind."""
        return Genome(center, self.sigma, fixed=self.fixed)

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


def as_coordinates(weight: Tensor) -> Tensor:
    """Return a weight as real numbers, on its own memory: itself, or (..., 2) of a complex one.

    Example:
        >>> as_coordinates(torch.tensor([1 + 2j]))
        tensor([[1., 2.]])
    """
    return torch.view_as_real(weight.detach()) if weight.is_complex() else weight


def as_weights(coordinates: Tensor, like: Tensor) -> Tensor:
    """Return real numbers, (..., *shape of the coordinates), in the type of a weight.

    Example:
        >>> as_weights(torch.tensor([[1.0, 2.0]]), torch.tensor([0j]))
        tensor([1.+2.j])
    """
    if like.is_complex() and not coordinates.is_complex():
        coordinates = torch.view_as_complex(coordinates.to(like.real.dtype).contiguous())
    return coordinates.to(like.dtype)


def root_mean_square(
    tensors: Mapping[str, Tensor], fixed: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Return each tensor's root mean square, at least `RMS_FLOOR`, with one transfer to the host.

    Args:
        tensors: by name.
        fixed: name -> entries that do not count, as in `Genome`.

    Example:
        >>> root_mean_square({"w": torch.tensor([3.0, -3.0]), "b": torch.zeros(2)})
        {'w': 3.0, 'b': 0.01}
    """
    if not tensors:
        return {}
    squares = [_mean_square(tensor, (fixed or {}).get(name)) for name, tensor in tensors.items()]
    device = squares[0].device
    values = torch.stack([square.to(device) for square in squares]).sqrt().tolist()
    return {name: max(value, RMS_FLOOR) for name, value in zip(tensors, values, strict=True)}


def _mean_square(tensor: Tensor, fixed: Tensor | None) -> Tensor:
    squares = tensor.detach().double().square()
    if fixed is None:
        return squares.mean()
    moving = ~fixed.expand_as(squares)
    return (squares * moving).sum() / moving.sum().clamp(min=1)


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
