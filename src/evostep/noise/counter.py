"""Random numbers by counting: number i of a stream is a hash of (key, i).

SplitMix64 of Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators",
https://doi.org/10.1145/2660193.2660195: word i is mix(key + i * gamma), with Stafford's thirteenth
mixer. A torch generator gives its numbers one after the other, on one thread, and starting one
costs more than a small layer's noise. Here all of them are independent: many streams are filled by
one call, on all threads, with the same bits on every device.

A word of 64 bits gives four numbers of 16 bits. A normal number is the quantile that belongs to
it: 65,536 equally likely values between -4.3 and 4.3, whose mean is 0 and whose variance is 1.
Evolution strategies need the first two moments to be exact and the rest to be near.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Distribution = Literal["normal", "uniform"]

_GAMMA = 0x9E3779B97F4A7C15
_LEVELS = 2**16
_NUMBERS = 4  # of 16 bits in a word
_CHUNK = 2**16  # words at a time, which stay in the caches: 0.5 MB, and as much again beside


def _signed(value: int) -> int:
    """Return the 64 bits of `value` as torch's signed integer."""
    return (value + 2**63) % 2**64 - 2**63


_MIX = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, None))


Keys = Sequence[int] | Tensor


def words(keys: Keys, start: int, stop: int, device: torch.device) -> Tensor:
    """Return the words `start` ... `stop - 1` of each stream, shape (n, stop - start), int64.

    Args:
        keys: n integers in [0, 2**64), or as many words of another stream, shape (n,).
        start: the first word, counted from 0.
        stop: the one after the last.
        device: of the result.

    Example:
        >>> a = words([7, 8], 0, 5, torch.device("cpu"))
        >>> torch.equal(a[1:, 3:], words([8], 3, 5, torch.device("cpu")))
        True
    """
    steps = _first_steps(device, max(_CHUNK, stop - start))[None, : stop - start]
    ahead = _signed(start * _GAMMA)
    if isinstance(keys, Tensor):
        z = steps + (keys + ahead)[:, None]
    elif len(keys) == 1:  # no transfer to the device
        z = steps + _signed(keys[0] + ahead)
    else:
        begin = [_signed(key + ahead) for key in keys]
        z = steps + torch.tensor(begin, dtype=torch.int64, device=device)[:, None]
    shifted = torch.empty_like(z)
    for shift, factor in _MIX:
        torch.bitwise_right_shift(z, shift, out=shifted)
        z.bitwise_xor_(shifted.bitwise_and_(2 ** (64 - shift) - 1))  # a logical shift
        if factor is not None:
            z.mul_(factor)
    return z


def word(key: int, i: int) -> int:
    """Return word `i` of one stream, in [0, 2**64).

    Example:
        >>> word(7, 3) == int(words([7], 3, 4, torch.device("cpu"))) % 2**64
        True
    """
    z = (key + (i + 1) * _GAMMA) % 2**64
    for shift, factor in _MIX:
        z ^= z >> shift
        if factor is not None:
            z = z * factor % 2**64
    return z


@functools.cache
def _first_steps(device: torch.device, count: int) -> Tensor:
    """Return gamma times 1 ... count."""
    return torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(_signed(_GAMMA))


def fill(out: Tensor, keys: Keys, distribution: Distribution) -> Tensor:
    """Fill the rows of `out` with the numbers of one stream each.

    Args:
        out: (n, m) float32 or float64, contiguous; written in place.
        keys: n of them, as for `words`, one for each row.
        distribution: ``"normal"``: mean 0, variance 1. ``"uniform"``: on (-1, 1), variance 1/3.

    Returns:
        `out`. A row depends on its key and on nothing else; a longer one begins with a shorter.

    Example:
        >>> one = fill(torch.empty(2, 6), [1, 2], "normal")
        >>> two = fill(torch.empty(1, 3), [2], "normal")
        >>> torch.equal(one[1, :3], two[0])
        True
    """
    assert out.is_contiguous(), "rows are filled through views"
    assert len(keys) == len(out), "a key for each row"
    columns = out.shape[1]
    width = -(-columns // _NUMBERS)  # words in a row
    rows = max(1, _CHUNK // max(width, 1))
    for top in range(0, len(out), rows):
        some = keys[top : top + rows]
        for left in range(0, width, _CHUNK):
            bits = words(some, left, min(width, left + _CHUNK), out.device)
            part = out[top : top + rows, left * _NUMBERS : (left + _CHUNK) * _NUMBERS]
            _write(part, bits.view(torch.uint16), distribution)
    return out


def _write(part: Tensor, bits: Tensor, distribution: Distribution) -> None:
    """Turn 16 bits each into numbers; the last few of a row may be left over."""
    indices = bits.to(torch.int32)
    if distribution == "uniform":
        values = indices.to(part.dtype).add_(0.5 - _LEVELS / 2).mul_(2 / _LEVELS)
        part.copy_(values[:, : part.shape[1]])
        return
    table = _quantiles(part.dtype, part.device)
    if part.is_contiguous() and part.shape == indices.shape:
        torch.index_select(table, 0, indices.view(-1), out=part.view(-1))
    else:
        values = table.index_select(0, indices.view(-1)).view(indices.shape)
        part.copy_(values[:, : part.shape[1]])


@functools.cache
def _quantiles(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the normal quantiles at the middles of 65,536 equal shares, scaled to variance 1."""
    middles = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    values = torch.erfinv(2 * middles - 1) * math.sqrt(2)
    values = (values - values.flip(0)) / 2  # symmetric to the bit: the mean is 0
    values /= values.square().mean().sqrt()
    return values.to(dtype).to(device)
