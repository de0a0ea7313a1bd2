"""Members: recipes of a few numbers, from which tensors are made one at a time, or many at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from evostep.genome.point import Coordinates, Genome
from evostep.noise import LowRank, Noise, draw_many, noise_dtype

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Spread:
    """How far the noise of members reaches, in each tensor.

    Attributes:
        sigma: standard deviation in units of the scale, where a genome has none of its own.
        relative: whether the scale is each tensor's root mean square; otherwise it is 1.
    """

    sigma: float
    relative: bool

    def sigma_of(self, genome: Genome, name: str) -> float:
        """Return the sigma in force for `name`, in units of the scale."""
        own = genome.sigma[name]
        return self.sigma if own is None else float(own)

    def scale_of(self, genome: Genome, name: str) -> float:
        """Return the unit of sigma for `name`, in units of the weights."""
        return genome.rms[name] if self.relative else 1.0


@dataclass(frozen=True)
class Perturbed:
    """Center + sigma * scale * noise, one tensor at a time.

    Attributes:
        genome: around whose center.
        noise: its kind.
        spread: how far it reaches.
        seed: of the run.
        generation: with the seed, and the direction's number, it determines the noise.
        direction: its number within the generation.
    """

    genome: Genome
    noise: Noise
    spread: Spread
    seed: int
    generation: int
    direction: int

    def tensor(self, name: str) -> Tensor:
        """Return the perturbed coordinates, float32 or the center's wider type."""
        center = self.genome.center[name]
        if self.spread.sigma_of(self.genome, name) == 0:
            return center
        return self._spread(self._draw(name, [self]).squeeze(0), name).add_(center)

    def write(self, name: str, out: Tensor) -> None:
        """Write the perturbed coordinates into `out`, with no tensor beside it if it can be."""
        center = self.genome.center[name]
        if out.dtype != noise_dtype(center) or not out.is_contiguous():
            out.copy_(self.tensor(name))
            return
        if self.spread.sigma_of(self.genome, name) == 0:
            out.copy_(center)
            return
        self._draw(name, [self], out.unsqueeze(0))
        self._spread(out, name).add_(center)

    def _draw(self, name: str, alike: Sequence[Perturbed], out: Tensor | None = None) -> Tensor:
        """Draw the noise of members that differ from this one in their directions alone."""
        drawn = draw_many(
            self.noise,
            self.genome.center[name],
            seed=self.seed,
            generation=self.generation,
            members=[one.direction for one in alike],
            name=name,
            out=out,
        )
        return self.genome.confine_(name, drawn)

    def _spread(self, noise: Tensor, name: str) -> Tensor:
        """Multiply noise by sigma and scale, in place."""
        sigma = self.spread.sigma_of(self.genome, name)
        return noise.mul_(sigma * self.spread.scale_of(self.genome, name))

    def factors(self, name: str) -> Factors | None:
        """Return A and B where the perturbed coordinates are the center plus ``A @ B.T``.

        None where the noise has no such factors; A has sigma and scale in it.
        """
        found = _factors_of_perturbed([self], name)
        return None if found is None else (found[0][0], found[1][0])


@dataclass(frozen=True)
class Mirror:
    """The mirror image of a member in the center: its antithetic partner.

    Mirrored is what the member is in the center's type, after rounding. So the image can be
    made in place of the member itself, without its noise; both lie opposite but for one rounding.
    """

    of: Coordinates
    genome: Genome

    def tensor(self, name: str) -> Tensor:
        """Return center - (member - center), in the center's type."""
        center = self.genome.center[name]
        return reflect_(self.of.tensor(name).to(center.dtype, copy=True), center)

    def write(self, name: str, out: Tensor) -> None:
        """Write it into `out`."""
        center = self.genome.center[name]
        if out.dtype != center.dtype:
            out.copy_(self.tensor(name))
            return
        write_member(self.of, name, out)
        reflect_(out, center)

    def reflects(self, other: Coordinates) -> bool:
        """Return whether this is the mirror image of `other`, as far as their recipes tell."""
        if type(self.of) is not type(other) or not isinstance(other, Perturbed):
            return self.of is other
        return all(
            _is_same(getattr(self.of, part.name), getattr(other, part.name))
            for part in fields(other)
        )

    def factors(self, name: str) -> Factors | None:
        """Return minus the member's factors."""
        found = self.of.factors(name) if isinstance(self.of, Perturbed) else None
        return None if found is None else (-found[0], found[1])


def _is_same(a: object, b: object) -> bool:
    return a is b or (isinstance(a, int | float | str | Spread | LowRank) and a == b)


def reflect_(tensor: Tensor, center: Tensor) -> Tensor:
    """Turn `tensor` into center - (tensor - center), in place.

    Example:
        >>> reflect_(torch.tensor([3.0]), torch.tensor([2.0]))
        tensor([1.])
    """
    torch.sub(center, tensor, out=tensor)
    return tensor.add_(center)


def write_member(member: Coordinates, name: str, out: Tensor) -> None:
    """Write a member's coordinates into `out`, in place where the member can."""
    if isinstance(member, Perturbed | Mirror):
        member.write(name, out)
    else:
        out.copy_(member.tensor(name))


def stack_members(members: Sequence[Coordinates], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the coordinates of all members: name -> (n, ...), in the center's type.

    Each equals what ``member.tensor(name)`` returns, to the bit; noise is drawn in one call. Where
    members do not differ it is one tensor for all (an expanded view): to be read, not written.
    """
    bases, place = _bases(members)
    if not bases:
        return {name: torch.stack([member.tensor(name) for member in members]) for name in names}
    return {name: _stack(bases, place, name) for name in names}


def _stack(bases: Sequence[Perturbed], place: Sequence[tuple[int, bool]], name: str) -> Tensor:
    first = bases[0]
    center = first.genome.center[name]
    if first.spread.sigma_of(first.genome, name) == 0:
        return center.expand(len(place), *center.shape)
    plus = first._spread(first._draw(name, bases), name).add_(center).to(center.dtype)
    where: slice | list[int] = [k for k, (_, mirrored) in enumerate(place) if mirrored]
    if not where:
        return plus if len(place) == len(bases) else plus[[i for i, _ in place]]
    if place == [(i, mirrored) for i in range(len(bases)) for mirrored in (False, True)]:
        out, where = plus.repeat_interleave(2, dim=0), slice(1, None, 2)
    else:
        out = plus[[i for i, _ in place]]
    out[where] = torch.sub(center, out[where]).add_(center)
    return out


def around(member: Coordinates, genome: Genome) -> bool:
    """Return whether a member is a perturbation of this very center, or the mirror image of one."""
    base = member.of if isinstance(member, Mirror) else member
    return isinstance(base, Perturbed) and base.genome is genome


def stack_factors(members: Sequence[Coordinates], name: str) -> Factors | None:
    """Return A, shape (n, rows, rank), and B, shape (n, columns, rank), of all members.

    None where a member has none: see `Perturbed.factors`.
    """
    bases, place = _bases(members)
    if not bases:
        return None
    found = _factors_of_perturbed(bases, name)
    if found is None:
        return None
    A, B = found
    rows = [base for base, _ in place]
    sign = torch.tensor([-1.0 if mirrored else 1.0 for _, mirrored in place]).to(A)
    return A[rows] * sign[:, None, None], B[rows]


_SHARED = ("genome", "noise", "spread", "seed", "generation")


def _bases(
    members: Sequence[Coordinates],
) -> tuple[list[Perturbed], list[tuple[int, bool]]]:
    """Return the distinct perturbed members, and for each member which it is and if mirrored.

    Nothing for other members, and for those that are not of one strategy and generation.
    """
    bases: list[Perturbed] = []
    index: dict[int, int] = {}
    place: list[tuple[int, bool]] = []
    for member in members:
        mirrored = isinstance(member, Mirror)
        base = member.of if isinstance(member, Mirror) else member
        if type(base) is not Perturbed:
            return [], []
        first = bases[0] if bases else base
        if not all(_is_same(getattr(base, part), getattr(first, part)) for part in _SHARED):
            return [], []
        if base.direction not in index:
            index[base.direction] = len(bases)
            bases.append(base)
        place.append((index[base.direction], mirrored))
    return bases, place


def _factors_of_perturbed(bases: Sequence[Perturbed], name: str) -> Factors | None:
    first = bases[0]
    genome, spread = first.genome, first.spread
    sigma = spread.sigma_of(genome, name)
    fixed = genome.fixed.get(name)
    if sigma == 0 or not isinstance(first.noise, LowRank):
        return None
    if fixed is not None and fixed.numel() != len(fixed):
        return None  # single entries stand still: the rest is of low rank no longer
    found = first.noise.factors_of_many(
        genome.center[name],
        seed=first.seed,
        generation=first.generation,
        members=[base.direction for base in bases],
        name=name,
    )
    if found is None:
        return None
    A, B = found
    if fixed is not None:  # whole rows
        A.masked_fill_(fixed.view(-1, 1), 0.0)
    return A.mul_(sigma * spread.scale_of(genome, name)), B
