"""Seeds and generators that follow from names and numbers alone."""

from __future__ import annotations

import hashlib

import torch

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
    text = "\x1f".join([f"{type(part).__name__}:{part}" for part in parts])
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
