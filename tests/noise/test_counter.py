"""Numbers by counting: the same bits however they are asked for, and normal enough."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from evostep.noise import counter
from evostep.noise.counter import fill, word, words

stats: Any = pytest.importorskip("scipy.stats")

CPU = torch.device("cpu")
KEYS = [0, 1, 7, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0]
GAMMA = 0x9E3779B97F4A7C15


def slow_word(key: int, i: int) -> int:
    """The twin: SplitMix64, word i of the stream of `key`, as the paper writes it."""
    z = (key + (i + 1) * GAMMA) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def unsigned(tensor: torch.Tensor) -> list[Any]:
    return [[value % 2**64 for value in row] for row in tensor.tolist()]


def slow_fill(keys: list[int], columns: int, distribution: str) -> torch.Tensor:
    rows = []
    for key in keys:
        row = []
        for j in range(columns):
            index = slow_word(key, j // 4) >> (16 * (j % 4)) & 0xFFFF
            share = (index + 0.5) / 2**16
            row.append(2 * share - 1 if distribution == "uniform" else stats.norm.ppf(share))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64).reshape(len(keys), columns)


def test_the_first_words_are_those_that_are_published() -> None:
    # of SplitMix64 seeded with 0
    assert [word(0, i) for i in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_words_are_those_of_the_slow_twin_with_logical_shifts() -> None:
    expected = [[slow_word(key, i) for i in range(3, 40)] for key in KEYS]
    assert unsigned(words(KEYS, 3, 40, CPU)) == expected
    assert any(value >= 2**63 for row in expected for value in row)  # where the shifts differ
    assert [[word(key, i) for i in range(3, 40)] for key in KEYS] == expected


def test_keys_may_be_words_of_a_stream() -> None:
    keys = words([5], 0, 6, CPU)[0]
    numbers = [key % 2**64 for key in keys.tolist()]
    assert torch.equal(words(keys, 2, 9, CPU), words(numbers, 2, 9, CPU))
    a, b = torch.empty(6, 11), torch.empty(6, 11)
    assert torch.equal(fill(a, keys, "normal"), fill(b, numbers, "normal"))


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("columns", [0, 1, 2, 3, 4, 5, 7, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_those_of_the_slow_twin(
    distribution: Any, columns: int, dtype: torch.dtype
) -> None:
    out = torch.full((len(KEYS), columns), math.nan, dtype=dtype)
    assert fill(out, KEYS, distribution) is out
    expected = slow_fill(KEYS, columns, distribution)
    # the table is scaled to variance 1, by less than one part in 10,000
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 17])
@pytest.mark.parametrize("columns", [1, 4, 13, 64, 103])
def test_chunks_do_not_change_a_bit(
    monkeypatch: pytest.MonkeyPatch, distribution: Any, chunk: int, columns: int
) -> None:
    whole = fill(torch.empty(len(KEYS), columns), KEYS, distribution)
    monkeypatch.setattr(counter, "_CHUNK", chunk)
    parts = fill(torch.full((len(KEYS), columns), math.nan), KEYS, distribution)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_a_row_depends_on_its_key_alone_and_begins_with_a_shorter_one(distribution: Any) -> None:
    whole = fill(torch.empty(len(KEYS), 50), KEYS, distribution)
    for i, key in enumerate(KEYS):
        for length in (1, 6, 49, 50):
            alone = fill(torch.empty(1, length), [key], distribution)
            assert torch.equal(alone[0], whole[i, :length])
    assert len({tuple(row) for row in whole.tolist()}) == len(KEYS)


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0)])
def test_nothing_is_filled_with_nothing(shape: tuple[int, int]) -> None:
    assert fill(torch.empty(shape), [1, 2, 3][: shape[0]], "normal").shape == shape


def test_the_table_has_the_moments_of_a_normal_number() -> None:
    table = counter._quantiles(torch.float64, CPU)
    assert len(table) == 2**16
    assert abs(float(table.mean())) < 1e-7
    assert abs(float(table.square().mean()) - 1) < 1e-7
    assert torch.equal(table, -table.flip(0))
    assert bool((table.diff() > 0).all())
    assert 4.2 < float(table.max()) < 4.4
    single = counter._quantiles(torch.float32, CPU).double()
    assert abs(float(single.mean())) < 1e-7
    assert abs(float(single.square().mean()) - 1) < 1e-7


def test_uniform_numbers_stay_inside_and_have_their_variance() -> None:
    n = 10**6
    values = fill(torch.empty(1, n), [3], "uniform")[0].double()
    assert -1 < float(values.min()) < -0.999
    assert 0.999 < float(values.max()) < 1
    assert abs(float(values.mean())) < 6 * math.sqrt(1 / 3 / n)
    # the variance of x^2 is 1/5 - 1/9
    assert abs(float(values.square().mean()) - 1 / 3) < 6 * math.sqrt((1 / 5 - 1 / 9) / n)


def test_bits_are_balanced() -> None:
    n = 2**16
    drawn = words([11], 0, n, CPU)[0]
    for bit in range(64):
        share = float((drawn >> bit & 1).double().mean())
        assert abs(share - 0.5) < 6 * 0.5 / math.sqrt(n), bit


def test_neighbouring_keys_and_neighbouring_numbers_are_uncorrelated() -> None:
    n = 2**16
    rows = fill(torch.empty(9, n), list(range(100, 109)), "normal").double()
    bound = 6 / math.sqrt(n)
    products = rows @ rows.T / n
    assert float((products - torch.diag(products.diag())).abs().max()) < bound
    for lag in (1, 2, 3, 4, 5, 8):
        shifted = (rows[:, lag:] * rows[:, :-lag]).mean(1)
        assert float(shifted.abs().max()) < 6 / math.sqrt(n - lag), lag


def test_a_million_numbers_pass_for_normal() -> None:
    values = fill(torch.empty(1, 10**6), [2026], "normal")[0]
    assert stats.kstest(values.double().numpy(), "norm").pvalue > 1e-4
