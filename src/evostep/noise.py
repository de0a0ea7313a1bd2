"""Noise as a pure function of (seed, generation, member, name).

Nothing else enters: no global generator, no iteration order, no engine, no number of devices. A
member is therefore a recipe of a few integers, and its noise is made again wherever it is needed
(the idea of the shared noise table of Salimans et al. 2017, https://arxiv.org/abs/1703.03864,
section 2.1, with a hash in place of the table).

Bits are the same on every machine for one kind of device and one version of torch; a CPU and a
GPU draw different numbers.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import torch
from torch import Tensor

NoiseKind = Literal["normal", "uniform"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)

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


def draw(
    kind: NoiseKind, like: Tensor, *, seed: int, generation: int, member: int | str, name: str
) -> Tensor:
    """Draw the noise of one member for one tensor.

    Args:
        kind: ``"normal"``: mean 0, variance 1. ``"uniform"``: on [-1, 1], variance 1/3.
        like: gives shape and device; the noise is float32 (float64 for a float64 tensor).
        seed: of the run.
        generation: counted from 0.
        member: index of the direction within the generation, or a label.
        name: of the tensor.

    Returns:
        A new tensor of `like`'s shape; the caller may change it in place.

    Example:
        >>> import torch
        >>> zero = torch.zeros(3)
        >>> one = draw("normal", zero, seed=0, generation=2, member=1, name="w")
        >>> bool((one == draw("normal", zero, seed=0, generation=2, member=1, name="w")).all())
        True
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"noise must be one of {', '.join(NOISE_KINDS)}, got {kind!r}")
    generator = make_generator(derive_seed(seed, generation, member, name), like.device)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    out = torch.empty(like.shape, dtype=dtype, device=like.device)
    if kind == "uniform":
        return out.uniform_(-1.0, 1.0, generator=generator)
    return out.normal_(generator=generator)
