"""Noise as a pure function of (seed, generation, member, name).

Nothing else enters: no global generator, no iteration order, no engine, no kind or number of
devices. A member is therefore a recipe of a few integers, and its noise is made again wherever it
is needed (the idea of the shared noise table of Salimans et al. 2017, https://arxiv.org/abs/1703.03864,
section 2.1, with a hash in place of the table: see `evostep.noise.counter`).

`LowRank` is the noise of EGGROLL, "Evolution Strategies at the Hyperscale" (2025),
https://arxiv.org/abs/2511.16652: a matrix's direction is A B^T / sqrt(rank). Here noise differs
between layers of one shape and between generations, and its entries have variance 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from evostep.noise.counter import Keys, fill, word, words
from evostep.noise.seeds import derive_seed

NoiseKind = Literal["normal", "uniform"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)


@dataclass(frozen=True)
class LowRank:
    """Noise of low rank for matrices, normal noise for all other tensors.

    A tensor of two or more dimensions (the weight of a linear, convolution or embedding layer) is
    taken as a matrix of its first dimension x all others. Its noise is ``A B^T / sqrt(rank)`` with
    standard normal A and B: entries have mean 0 and variance 1 and are uncorrelated, so an
    evolution strategy's estimate stays unbiased on a quadratic; they are not independent. A member
    is thin, the sum over a population is not.

    Args:
        rank: of the noise, at least 1 and at most that of the smallest matrix that moves.

    Raises:
        ValueError: a rank below 1; later, when it meets the weights, one above a layer's.

    Example:
        >>> from evostep import RandomMutation
        >>> mutation = RandomMutation(sigma=0.02, noise=LowRank(rank=1))
    """

    rank: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be an integer >= 1, got {self.rank!r}")

    def check(self, name: str, shape: torch.Size) -> None:
        """Raise ValueError where the matrix called `name` has not that rank."""
        if len(shape) < 2 or 0 in shape:  # nothing is drawn
            return
        rows, columns = shape[0], math.prod(shape[1:])
        if self.rank > min(rows, columns):
            raise ValueError(
                f"rank {self.rank} is above that of {name!r} ({rows} x {columns}): use a rank of "
                f"at most {min(rows, columns)}, or noise='normal', which has full rank"
            )

    def factors(
        self, like: Tensor, *, seed: int, generation: int, member: int | str, name: str
    ) -> tuple[Tensor, Tensor] | None:
        """Return A and B of which the noise is ``A @ B.T``; None for what is not a matrix.

        Args:
            like: as for `draw`, of shape (rows, ...).
            seed: of the run.
            generation: counted from 0.
            member: as for `draw`.
            name: of the tensor.

        Returns:
            A, shape (rows, rank), the factor 1 / sqrt(rank) included; B, shape (columns, rank).

        Example:
            >>> A, B = LowRank(2).factors(
            ...     torch.zeros(5, 4, 3, 3), seed=0, generation=0, member=0, name="conv.weight"
            ... )
            >>> A.shape, B.shape
            (torch.Size([5, 2]), torch.Size([36, 2]))
        """
        found = self.factors_of_many(
            like, seed=seed, generation=generation, members=(member,), name=name
        )
        return None if found is None else (found[0][0], found[1][0])

    def factors_of_many(
        self,
        like: Tensor,
        *,
        seed: int,
        generation: int,
        members: Sequence[int | str],
        name: str,
    ) -> tuple[Tensor, Tensor] | None:
        """Return the factors of several members: A, shape (n, rows, rank), B (n, columns, rank).

        Args:
            like: as for `factors`.
            seed: of the run.
            generation: counted from 0.
            members: as for `draw`, n of them.
            name: of the tensor.
        """
        self.check(name, like.shape)
        if like.dim() < 2:
            return None
        rows, columns = like.shape[0], math.prod(like.shape[1:])
        shape = (rows + columns, self.rank)
        both = _blank(shape, like, len(members))
        flat = both.view(len(members), shape[0] * shape[1])
        fill(flat, _keys(seed, generation, members, name, like.device), "normal")
        A, B = both.split((rows, columns), dim=1)
        return A.div_(math.sqrt(self.rank)), B


Noise = NoiseKind | LowRank


# Numbers that a sum over members draws in one call: 256 KB, and small tensors share its overhead.
_DRAWN_TOGETHER = 2**16


def check_noise(noise: Noise) -> None:
    """Raise ValueError for what is no kind of noise."""
    if not isinstance(noise, LowRank) and noise not in NOISE_KINDS:
        raise ValueError(
            f"noise must be one of {', '.join(NOISE_KINDS)} or LowRank(rank), got {noise!r}"
        )


def draw(
    kind: Noise, like: Tensor, *, seed: int, generation: int, member: int | str, name: str
) -> Tensor:
    """Draw the noise of one member for one tensor.

    Args:
        kind: ``"normal"``: mean 0, variance 1. ``"uniform"``: on [-1, 1], variance 1/3.
            ``LowRank(rank)``: mean 0, variance 1, matrices of that rank.
        like: gives shape and device; the noise is float32 (float64 for a float64 tensor).
        seed: of the run.
        generation: counted from 0.
        member: index of the direction within the generation, or a label.
        name: of the tensor.

    Returns:
        A new tensor of `like`'s shape; the caller may change it in place.

    Raises:
        ValueError: another kind; a rank above that of `like`.

    Example:
        >>> import torch
        >>> zero = torch.zeros(3)
        >>> one = draw("normal", zero, seed=0, generation=2, member=1, name="w")
        >>> bool((one == draw("normal", zero, seed=0, generation=2, member=1, name="w")).all())
        True
    """
    return draw_many(
        kind, like, seed=seed, generation=generation, members=(member,), name=name
    ).squeeze(0)


def draw_many(
    kind: Noise,
    like: Tensor,
    *,
    seed: int,
    generation: int,
    members: Sequence[int | str],
    name: str,
    out: Tensor | None = None,
) -> Tensor:
    """Draw the noise of several members for one tensor, in one call: see `draw`.

    Args:
        kind: as for `draw`.
        like: as for `draw`.
        seed: of the run.
        generation: counted from 0.
        members: as for `draw`, n of them.
        name: of the tensor.
        out: where to put it, of the shape below, contiguous, of the noise's type; else a new one.

    Returns:
        Shape (n, *like.shape); each member's is what `draw` returns.

    Example:
        >>> import torch
        >>> key = {"seed": 0, "generation": 2, "name": "w"}
        >>> many = draw_many("normal", torch.zeros(3), members=range(4), **key)
        >>> torch.equal(many[2], draw("normal", torch.zeros(3), member=2, **key))
        True
    """
    check_noise(kind)
    n = len(members)
    if out is None:
        out = _blank(like.shape, like, n)
    if isinstance(kind, LowRank):
        factors = kind.factors_of_many(
            like, seed=seed, generation=generation, members=members, name=name
        )
        if factors is not None:
            A, B = factors
            torch.bmm(A, B.mT, out=out.view(n, A.shape[1], B.shape[1]))
            return out
    keys = _keys(seed, generation, members, name, like.device)
    fill(out.view(n, like.numel()), keys, "uniform" if kind == "uniform" else "normal")
    return out


def weighted_sum(
    kind: Noise,
    like: Tensor,
    weights: Mapping[int, float],
    *,
    seed: int,
    generation: int,
    name: str,
) -> Tensor:
    """Sum the noise of members, each times its weight, drawing again some at a time.

    Memory beside the sum is that of one member's noise, or of the few small ones that are drawn
    together. Of low-rank noise only the factors are drawn, and never multiplied out one by one.

    Args:
        kind: as for `draw`.
        like: as for `draw`.
        weights: member -> weight; zeros are not drawn.
        seed: of the run.
        generation: counted from 0.
        name: of the tensor.

    Returns:
        A new tensor of `like`'s shape, of the noise's type.

    Example:
        >>> import torch
        >>> key = {"seed": 0, "generation": 2, "name": "w"}
        >>> total = weighted_sum("normal", torch.zeros(3), {4: 2.0, 5: 0.0}, **key)
        >>> torch.equal(total, 2 * draw("normal", torch.zeros(3), member=4, **key))
        True
    """
    total = torch.zeros(like.shape, dtype=noise_dtype(like), device=like.device)
    used = [member for member, weight in weights.items() if weight]
    numbers = like.numel()
    thin = isinstance(kind, LowRank) and like.dim() >= 2
    if isinstance(kind, LowRank) and thin:
        numbers = kind.rank * (like.shape[0] + math.prod(like.shape[1:]))
    group = max(1, _DRAWN_TOGETHER // max(numbers, 1))
    for start in range(0, len(used), group):
        some = used[start : start + group]
        factors = torch.tensor([weights[m] for m in some], dtype=total.dtype, device=like.device)
        if isinstance(kind, LowRank) and thin:
            found = kind.factors_of_many(
                like, seed=seed, generation=generation, members=some, name=name
            )
            assert found is not None, "a matrix has factors"
            A, B = found  # (k, rows, rank), (k, columns, rank)
            A.mul_(factors[:, None, None])
            total.view(A.shape[1], B.shape[1]).addmm_(
                A.transpose(0, 1).flatten(1), B.transpose(1, 2).flatten(0, 1)
            )
            continue
        eps = draw_many(kind, like, seed=seed, generation=generation, members=some, name=name)
        if len(some) == 1:
            total.add_(eps[0], alpha=weights[some[0]])
        else:
            total.view(-1).add_(factors @ eps.view(len(some), -1))
    return total


def noise_dtype(like: Tensor) -> torch.dtype:
    """Return the type in which noise for a tensor is drawn: float32, or float64 for float64."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _keys(
    seed: int, generation: int, members: Sequence[int | str], name: str, device: torch.device
) -> Keys:
    """Return a key for each member: word `member` of the stream of (seed, generation, name).

    A label has a stream of its own.
    """
    stream = derive_seed(seed, generation, name)
    numbers = [member for member in members if isinstance(member, int)]
    if len(numbers) < len(members) or len(members) == 1:
        return [
            word(stream, m) if isinstance(m, int) else derive_seed(seed, generation, name, m)
            for m in members
        ]
    first, last = min(numbers), max(numbers)
    keys = words([stream], first, last + 1, device)[0]
    if numbers == list(range(first, last + 1)):
        return keys
    if last - first > 64 * len(numbers):  # far apart: one by one
        return [word(stream, m) for m in numbers]
    return keys[torch.tensor([m - first for m in numbers], device=device)]


def _blank(shape: Sequence[int], like: Tensor, n: int) -> Tensor:
    return torch.empty((n, *shape), dtype=noise_dtype(like), device=like.device)
