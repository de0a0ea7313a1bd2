"""Noise: a pure function of (seed, generation, member, name), with the moments that it promises."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evostep.noise import NOISE_KINDS, NoiseKind, derive_seed, draw, make_generator

KEY: dict[str, Any] = {"seed": 3, "generation": 5, "member": 7, "name": "layer1.weight"}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


# Purity


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_the_same_key_gives_the_same_bits(kind: NoiseKind) -> None:
    like = torch.zeros(17, 3)
    assert same(draw(kind, like, **KEY), draw(kind, like, **KEY))


def test_order_and_what_was_drawn_between_do_not_matter() -> None:
    like, names = torch.zeros(40), ["a", "b", "c", "d"]
    forward = {n: draw("normal", like, seed=0, generation=0, member=1, name=n) for n in names}
    torch.rand(13)
    backward = {
        n: draw("normal", like, seed=0, generation=0, member=1, name=n) for n in names[::-1]
    }
    assert all(same(forward[n], backward[n]) for n in names)


def test_it_neither_reads_nor_moves_a_global_stream() -> None:
    like = torch.zeros(50)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = draw("normal", like, **KEY)
    assert same(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    torch.manual_seed(999)
    assert same(draw("normal", like, **KEY), first)


def test_threads_do_not_matter() -> None:
    like = torch.zeros(1000)

    def one(member: int) -> torch.Tensor:
        return draw("normal", like, seed=0, generation=0, member=member, name="w")

    alone = [one(i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, range(24)))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_the_number_of_torch_threads_does_not_matter() -> None:
    like = torch.zeros(200_000)
    threads = torch.get_num_threads()
    alone = draw("normal", like, **KEY)
    try:
        torch.set_num_threads(2)
        assert same(draw("normal", like, **KEY), alone)
    finally:
        torch.set_num_threads(threads)


def test_the_caller_may_change_it() -> None:
    like = torch.zeros(5)
    first = draw("normal", like, **KEY)
    kept = first.clone()
    first.zero_()
    assert same(draw("normal", like, **KEY), kept)
    assert same(like, torch.zeros(5))


# Differences


CHANGES: list[tuple[str, Any]] = [
    ("seed", 4),
    ("generation", 6),
    ("member", 8),
    ("member", "7"),
    ("name", "layer2.weight"),
]


@pytest.mark.parametrize(("part", "value"), CHANGES)
@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_every_part_of_the_key_changes_the_noise(kind: NoiseKind, part: str, value: Any) -> None:
    like = torch.zeros(4096)
    a, b = draw(kind, like, **KEY), draw(kind, like, **{**KEY, part: value})
    assert float((a == b).double().mean()) < 0.01  # and not merely shifted or negated:
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(4096)


def test_tensors_of_one_shape_do_not_share_noise() -> None:
    like = torch.zeros(64, 64)
    drawn = torch.stack(
        [
            draw("normal", like, seed=0, generation=g, member=m, name=n).flatten()
            for g in range(3)
            for m in range(4)
            for n in ("fc1.weight", "fc2.weight", "fc3.weight")
        ]
    )
    off_diagonal = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert float(off_diagonal.abs().max()) < 6 / math.sqrt(64 * 64)


# Distribution


def test_normal_noise_has_the_moments_of_a_normal() -> None:
    n = 400_000
    x = draw("normal", torch.zeros(n, dtype=torch.float64), **KEY)
    assert abs(float(x.mean())) < 5 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((x**3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float((x**4).mean()) - 3) < 5 * math.sqrt(96 / n)


def test_many_small_tensors_are_normal_together() -> None:
    # torch draws fewer than 16 numbers by another algorithm
    n, size = 4000, 5
    x = torch.stack(
        [
            draw("normal", torch.zeros(size), seed=0, generation=0, member=i, name="bias")
            for i in range(n)
        ]
    ).double()
    assert abs(float(x.mean())) < 5 / math.sqrt(n * size)
    assert abs(float(x.var()) - 1) < 5 * math.sqrt(2 / (n * size))
    between = torch.corrcoef(x.T) - torch.eye(size)
    assert float(between.abs().max()) < 5 / math.sqrt(n)


def test_uniform_noise_fills_its_interval_evenly() -> None:
    n = 400_000
    x = draw("uniform", torch.zeros(n, dtype=torch.float64), **KEY)
    assert -1 <= float(x.min()) < -0.999
    assert 0.999 < float(x.max()) <= 1
    assert abs(float(x.mean())) < 5 * math.sqrt(1 / 3 / n)
    assert abs(float(x.var()) - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    counts = torch.histc(x, bins=20, min=-1, max=1)
    chi2 = float(((counts - n / 20) ** 2 / (n / 20)).sum())
    assert chi2 < 50  # 19 degrees of freedom: one in 10,000 keys is above


@pytest.mark.parametrize(
    ("given_as", "drawn_as"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_noise_is_never_narrower_than_float32(given_as: torch.dtype, drawn_as: torch.dtype) -> None:
    out = draw("normal", torch.zeros(2, 3, dtype=given_as), **KEY)
    assert out.dtype == drawn_as
    assert out.shape == (2, 3)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normal, uniform.*'cauchy'"):
        draw("cauchy", torch.zeros(2), **KEY)  # type: ignore[arg-type]


# The hash and the generator

PARTS = st.lists(st.one_of(st.integers(), st.text("abc.01", max_size=6)), max_size=4)


@given(PARTS, PARTS)
def test_keys_are_equal_only_where_their_parts_are(a: list[Any], b: list[Any]) -> None:
    assert (derive_seed(*a) == derive_seed(*b)) == (a == b)


@given(PARTS)
def test_keys_have_64_bits(parts: list[Any]) -> None:
    assert 0 <= derive_seed(*parts) < 2**64


def test_keys_use_all_of_their_bits() -> None:
    keys = [derive_seed(0, g, i, "w") for g in range(100) for i in range(20)]
    assert len(set(keys)) == len(keys)
    for bit in range(64):
        share = sum(key >> bit & 1 for key in keys) / len(keys)
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(len(keys)), f"bit {bit} is biased"


def test_keys_that_share_the_32_bits_a_cpu_is_seeded_with_differ_all_the_same() -> None:
    low = derive_seed("anything") % 2**32
    streams = [torch.rand(8, generator=make_generator(low + (high << 32))) for high in range(64)]
    assert len({tuple(stream.tolist()) for stream in streams}) == len(streams)


def test_streams_that_share_a_seed_do_not_share_normal_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def with_keys(keys: Callable[..., int]) -> torch.Tensor:
        monkeypatch.setattr("evostep.noise.draws.derive_seed", keys)
        return draw("normal", torch.zeros(4096), **KEY)

    a = with_keys(lambda *_: 17 + (3 << 32))
    b = with_keys(lambda *_: 17 + (500 << 32))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(4096)
