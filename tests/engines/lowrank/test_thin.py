"""Layers with thin corrections: each is its dense twin, whatever the shapes and the memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evostep.engines.lowrank import thin
from evostep.engines.lowrank.thin import convolution, embedding, linear

MEMBERS = 3


def factors(rows: int, columns: int, rank: int, dtype: Any = torch.float64) -> tuple[Tensor, ...]:
    A = torch.randn(MEMBERS, rows, rank, dtype=dtype)
    return A, torch.randn(MEMBERS, columns, rank, dtype=dtype)


def bias_of(kind: str, rows: int, dtype: Any = torch.float64) -> Tensor | None:
    """A bias of each member's own, one for all, or none."""
    if kind == "none":
        return None
    return torch.randn(*((MEMBERS, rows) if kind == "own" else (rows,)), dtype=dtype)


def of_member(tensor: Tensor | None, i: int, own: bool) -> Tensor | None:
    return tensor[i] if own and tensor is not None else tensor


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# Linear


@pytest.mark.parametrize("bias", ["none", "own", "one for all"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sizes", [(), (1,), (4,), (2, 3), (2, 1, 3)], ids=str)
def test_a_linear_layer_takes_any_dimensions(
    sizes: tuple[int, ...], shared: bool, bias: str
) -> None:
    W, (A, B), b = torch.randn(5, 6, dtype=torch.float64), factors(5, 6, 2), bias_of(bias, 5)
    x = torch.randn(*(() if shared else (MEMBERS,)), *sizes, 6, dtype=torch.float64)
    y = linear(x, W, A, B, b, shared=shared)
    assert y.shape == (MEMBERS, *sizes, 5)
    for i in range(MEMBERS):
        own = F.linear(x if shared else x[i], W + A[i] @ B[i].T, of_member(b, i, bias == "own"))
        assert_near(y[i], own)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_linear_layer_keeps_the_order_of_dimensions_in_memory(
    order: tuple[int, ...], shared: bool
) -> None:
    """A transposed input is not copied, and what comes after meets the memory that it gave."""
    W, (A, B) = torch.randn(5, 6, dtype=torch.float64), factors(5, 6, 1)
    first = 0 if shared else 1
    sizes = [2, 3, 4]
    made = torch.randn(*([MEMBERS] * first), *(sizes[d] for d in order), 6, dtype=torch.float64)
    back = [order.index(d) + first for d in range(3)]
    x = made.permute(*range(first), *back, made.dim() - 1)
    y = linear(x, W, A, B, None, shared=shared)
    assert y.shape == (MEMBERS, 2, 3, 4, 5)
    for i in range(MEMBERS):
        assert_near(y[i], F.linear(x if shared else x[i], W + A[i] @ B[i].T))
    strides = [y.stride(1 + d) for d in order]
    assert strides == sorted(strides, reverse=True)


def test_the_layers_change_none_of_their_inputs() -> None:
    W, (A, B), b = torch.randn(4, 9, dtype=torch.float64), factors(4, 9, 1), bias_of("own", 4)
    x = torch.randn(MEMBERS, 2, 9, dtype=torch.float64)
    images, kernels = torch.randn(MEMBERS, 2, 1, 5, 5, dtype=torch.float64), W.view(4, 1, 3, 3)
    given = [W, A, B, b, x, images]
    before = [tensor.clone() for tensor in given if tensor is not None]
    linear(x, W, A, B, b)
    convolution(images, kernels, A, B, b, (1, 1), (1, 1), (1, 1), 1)
    embedding(torch.tensor([[0, 3]] * MEMBERS), W, A, B)
    assert all(map(torch.equal, before, given))


# Embeddings


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sizes", [(), (1,), (5,), (2, 3)], ids=str)
def test_an_embedding_takes_indices_of_any_dimensions(sizes: tuple[int, ...], shared: bool) -> None:
    W, (A, B) = torch.randn(9, 4, dtype=torch.float64), factors(9, 4, 2)
    indices = torch.randint(9, (*(() if shared else (MEMBERS,)), *sizes))
    y = embedding(indices, W, A, B, shared=shared)
    assert y.shape == (MEMBERS, *sizes, 4)
    for i in range(MEMBERS):
        assert_near(y[i], F.embedding(indices if shared else indices[i], W + A[i] @ B[i].T))


# Convolutions

# channels, rows, groups, rank, taps: as planes where taps * rank <= channels of a group, as small
# convolutions where they are more, and one by one in groups of few channels
WAYS: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "planes": (9, 4, 1, 1, (3, 3)),
    "planes of rank 2": (8, 4, 1, 2, (2, 2)),
    "planes in groups": (12, 6, 2, 1, (2, 3)),
    "planes in groups, rank 2": (16, 6, 2, 2, (2, 2)),
    "planes of one tap": (3, 4, 1, 3, (1, 1)),
    "planes in three dimensions": (8, 4, 1, 1, (2, 2, 2)),
    "planes in three dimensions, groups": (4, 4, 2, 1, (2, 1, 1)),
    "convolutions": (2, 4, 1, 1, (3, 3)),
    "convolutions, one channel too few": (8, 4, 1, 1, (3, 3)),
    "convolutions of rank 2": (3, 4, 1, 2, (3, 2)),
    "convolutions in three dimensions": (2, 4, 1, 2, (2, 3, 1)),
    "one by one, depthwise": (4, 4, 4, 1, (3, 3)),
    "one by one, groups of few": (6, 4, 2, 2, (3, 1)),
}
# stride, padding, dilation of the first two dimensions; a third has those of the second
GEOMETRIES = [
    ((1, 1), (0, 0), (1, 1)),
    ((1, 1), (1, 2), (1, 1)),
    ((2, 1), (1, 0), (1, 2)),
    ((3, 2), (2, 3), (2, 1)),
    ((5, 4), (0, 5), (1, 1)),  # strides beyond the taps; outputs of padding alone
    ((2, 3), (6, 6), (3, 2)),  # taps that meet padding alone in some outputs
]


# Every way meets every geometry with shared inputs or not; biases, added in the end, take turns.
GRID = [
    pytest.param(
        way, geometry, shared, bias, marks=() if (i + j + shared + k) % 3 == 0 else pytest.mark.slow
    )
    for i, way in enumerate(WAYS)
    for j, geometry in enumerate(GEOMETRIES)
    for shared in (True, False)
    for k, bias in enumerate(("none", "own", "one for all"))
]


@pytest.mark.parametrize(("way", "geometry", "shared", "bias"), GRID)
def test_a_convolution_is_its_dense_twin_in_each_of_its_ways(
    way: str, geometry: tuple[tuple[int, int], ...], shared: bool, bias: str
) -> None:
    channels, rows, groups, rank, taps = WAYS[way]
    sizes = (7, 8, 6)[: len(taps)]
    stride, padding, dilation = ((*pair, pair[1])[: len(taps)] for pair in geometry)
    x = torch.randn(*(() if shared else (MEMBERS,)), 2, channels, *sizes, dtype=torch.float64)
    W = torch.randn(rows, channels // groups, *taps, dtype=torch.float64)
    (A, B), b = factors(rows, W[0].numel(), rank), bias_of(bias, rows)
    y = convolution(x, W, A, B, b, stride, padding, dilation, groups, shared=shared)
    convolve = F.conv2d if len(taps) == 2 else F.conv3d
    for i in range(MEMBERS):
        dense = W + (A[i] @ B[i].T).view_as(W)
        own = of_member(b, i, bias == "own")
        x_i = x if shared else x[i]
        assert_near(y[i], convolve(x_i, dense, own, stride, padding, dilation, groups))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (2, 1)], ids=str)
def test_a_tap_that_meets_padding_alone_adds_nothing(sizes: tuple[int, int]) -> None:
    x = torch.randn(MEMBERS, 2, 9, *sizes, dtype=torch.float64)
    W, (A, B) = torch.randn(4, 9, 3, 3, dtype=torch.float64), factors(4, 81, 1)
    y = convolution(x, W, A, B, None, (1, 1), (1, 1), (1, 1), 1)
    for i in range(MEMBERS):
        assert_near(y[i], F.conv2d(x[i], W + (A[i] @ B[i].T).view_as(W), padding=1))


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_the_one_that_its_name_says(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("_by_planes", "_one_by_one"):
        real = getattr(thin, name)

        def noted(*args: Any, name: str = name, real: Any = real) -> Tensor:
            taken.append(name)
            out: Tensor = real(*args)
            return out

        monkeypatch.setattr(thin, name, noted)
    channels, rows, groups, rank, taps = WAYS[way]
    x = torch.randn(MEMBERS, 2, channels, *(7, 8, 6)[: len(taps)], dtype=torch.float64)
    W = torch.randn(rows, channels // groups, *taps, dtype=torch.float64)
    A, B = factors(rows, W[0].numel(), rank)
    d = len(taps)
    convolution(x, W, A, B, None, (1,) * d, (1,) * d, (1,) * d, groups)
    expected = {"planes": ["_by_planes"], "convolutions": [], "one by one": ["_one_by_one"]}
    assert [taken] == [found for start, found in expected.items() if way.startswith(start)]


@pytest.mark.parametrize("shared", [True, False])
def test_images_in_any_memory_format_give_the_same(shared: bool) -> None:
    W, (A, B) = torch.randn(4, 9, 3, 3, dtype=torch.float64), factors(4, 81, 1)
    x = torch.randn(*(() if shared else (MEMBERS,)), 2, 9, 7, 7, dtype=torch.float64)
    last = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    assert last.stride() != x.stride()
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    one, other = (convolution(v, W, A, B, None, *geometry, shared=shared) for v in (x, last))
    assert torch.equal(one, other)
    assert one[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tap", range(3))
@pytest.mark.parametrize("size", [3, 7])
def test_windows_are_the_inputs_that_a_tap_meets(tap: int, size: int) -> None:
    for stride, padding, dilation in itertools.product((1, 2, 4), (0, 1, 5), (1, 3)):
        if size + 2 * padding - 2 * dilation - 1 >= 0:
            check_window(tap, size, stride, padding, dilation)


def check_window(tap: int, size: int, stride: int, padding: int, dilation: int) -> None:
    """The slow twin: output by output."""
    size_out = (size + 2 * padding - 2 * dilation - 1) // stride + 1
    met = {o: o * stride + tap * dilation - padding for o in range(size_out)}
    met = {o: i for o, i in met.items() if 0 <= i < size}
    found = thin._window(tap, size, size_out, stride, padding, dilation)
    if found is None:
        assert not met
        return
    into, from_ = (range(10_000)[part] for part in found)
    assert dict(zip(into, from_, strict=True)) == met


# Autocast


@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_autocast_casts_as_it_does_in_a_layer_of_torch(layer: str) -> None:
    single = torch.float32
    W, (A, B), b = torch.randn(4, 9), factors(4, 9, 1, single), bias_of("own", 4, single)
    x, images = torch.randn(2, 9), torch.randn(2, 1, 5, 5)

    def run() -> Tensor:
        if layer == "linear":
            return linear(x, W, A, B, b, shared=True)
        kernels = W.view(4, 1, 3, 3)
        return convolution(images, kernels, A, B, b, (1, 1), (0, 0), (1, 1), 1, shared=True)

    full = run()
    with torch.autocast("cpu", torch.bfloat16):
        cast = run()
        assert torch.is_autocast_enabled("cpu"), "still on"
    assert full.dtype == single
    assert cast.dtype == torch.bfloat16
    assert not torch.equal(cast.float(), full)
    torch.testing.assert_close(cast.float(), full, rtol=0.1, atol=0.2)


def test_autocast_leaves_float64_as_it_is() -> None:
    W, (A, B) = torch.randn(4, 9, dtype=torch.float64), factors(4, 9, 1)
    x = torch.randn(2, 9, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, W, A, B, None, shared=True).dtype == torch.float64
