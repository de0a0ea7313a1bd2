"""Noise as a pure function of (seed, generation, member, name).

Nothing else enters: no global generator, no iteration order, no engine, no number of devices. A
member is therefore a recipe of a few integers, and its noise is made again wherever it is needed
(the idea of the shared noise table of Salimans et al. 2017, https://arxiv.org/abs/1703.03864,
section 2.1, with a hash in place of the table).

Bits are the same on every machine for one kind of device and one version of torch; a CPU and a
GPU draw different numbers.

`LowRank` is the noise of EGGROLL, "Evolution Strategies at the Hyperscale" (2025),
https://arxiv.org/abs/2511.16652: a matrix's direction is A B^T / sqrt(rank). Here noise differs
between layers of one shape and between generations, and its entries have variance 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

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
        if len(shape) < 2:
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
        """Give A and B of which the noise is ``A @ B.T``; None for what is not a matrix.

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
        self.check(name, like.shape)
        if like.dim() < 2:
            return None
        columns = math.prod(like.shape[1:])
        both = _normal((like.shape[0] + columns, self.rank), like, seed, generation, member, name)
        A, B = both.split((like.shape[0], columns))
        return A.div_(math.sqrt(self.rank)), B


Noise = NoiseKind | LowRank

# The CPU's Mersenne twister is seeded with 32 bits, so that two of 100,000 streams share a seed
# with near certainty. Up to 1,023 discarded numbers more take apart those that do.
_SEED_BITS = 32
_BURN_IN = 1024


def derive_seed(*parts: int | str) -> int:
    """Hash `parts` to 64 bits that depend on every one of them and on their order.

    Args:
        parts: integers and strings, e.g. (seed, generation, member, name).

    Returns:
        An integer in [0, 2**64).

    Example:
        >>> derive_seed(0, 1, "fc.weight") == derive_seed(0, 1, "fc.weight")
        True
        >>> derive_seed(0, 11, "a") == derive_seed(0, 1, "1a")
        False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def make_generator(key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator from a 64-bit `key`, using all of its bits that the device can take."""
    device = torch.device(device)
    generator = torch.Generator(device=device)
    if device.type != "cpu":  # Philox takes the whole key
        generator.manual_seed(key % 2**63)
        return generator
    generator.manual_seed(key % 2**_SEED_BITS)
    skip = (key >> _SEED_BITS) % _BURN_IN
    if skip:
        torch.rand(skip, generator=generator)
    return generator


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
    check_noise(kind)
    if isinstance(kind, LowRank):
        factors = kind.factors(like, seed=seed, generation=generation, member=member, name=name)
        if factors is not None:
            A, B = factors
            return (A @ B.T).reshape(like.shape)
    elif kind == "uniform":
        out, generator = _blank(like.shape, like, seed, generation, member, name)
        return out.uniform_(-1.0, 1.0, generator=generator)
    return _normal(like.shape, like, seed, generation, member, name)


def _normal(
    shape: Sequence[int], like: Tensor, seed: int, generation: int, member: int | str, name: str
) -> Tensor:
    out, generator = _blank(shape, like, seed, generation, member, name)
    return out.normal_(generator=generator)


def _blank(
    shape: Sequence[int], like: Tensor, seed: int, generation: int, member: int | str, name: str
) -> tuple[Tensor, torch.Generator]:
    """Give an empty tensor and the generator to fill it."""
    generator = make_generator(derive_seed(seed, generation, member, name), like.device)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(shape, dtype=dtype, device=like.device), generator
