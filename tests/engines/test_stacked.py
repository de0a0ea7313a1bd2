"""What engines that score many at once share: drawing, chunks, memory, and what they refuse."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evostep import Evolution, Fitness, LowRank, Only, OpenAIES
from evostep.engines import stacked
from evostep.engines.base import CannotScore, Engine
from evostep.engines.lowrank import SharedProduct
from evostep.engines.stacked import (
    Drawn,
    MemoryLayout,
    NeedsContiguousError,
    Own,
    free_bytes,
    in_either_layout,
    score_in_chunks,
    why_opaque,
)
from evostep.engines.vmap import Vmap
from evostep.errors import is_out_of_memory
from evostep.genome.point import Coordinates, Tensors
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.isolation import ModuleState
from evostep.scoring.scores import Scores

X, Y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
ROUND = Round(seed=0, generation=0)


def some_members(n: int) -> list[Coordinates]:
    return [Tensors({"w": torch.full((2, 3), float(i))}) for i in range(n)]


def stack(members: Sequence[Coordinates]) -> Own:
    w = torch.stack([member.tensor("w") for member in members])
    return Own({"thin": (w[:, :, :1], w[:, 0, :, None])}, {"w": w})


EACH = stack(some_members(1)).nbytes


def judge_of(model: nn.Module) -> Evaluator:
    return Evaluator(Fitness(model, [(X, Y)], "neg-loss"), ModuleState(model))


# What members have of their own


def test_some_of_the_members_have_what_they_had_among_all() -> None:
    own = stack(some_members(5))
    some = own[1:3]
    assert some.whole["w"][:, 0, 0].tolist() == [1.0, 2.0]
    assert [factor.shape for factor in some.thin["thin"]] == [(2, 2, 1), (2, 3, 1)]
    assert some.thin["thin"][0][:, 0, 0].tolist() == [1.0, 2.0]
    assert some.whole["w"].data_ptr() == own.whole["w"][1].data_ptr(), "a view"


def test_bytes_are_those_of_all_tensors() -> None:
    assert stack(some_members(5)).nbytes == 5 * 4 * (6 + 2 + 3) == 5 * EACH


@pytest.mark.parametrize("room", [1, 3 * EACH, 4 * EACH, 100 * EACH])
@pytest.mark.parametrize("chunks", [[5, 5], [2, 2, 2, 2, 2], [4, 3, 3], [1] * 10, [10]], ids=str)
@pytest.mark.parametrize("each", [None, EACH])
def test_each_takes_its_own_however_many_are_drawn_together(
    each: int | None, chunks: list[int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked, "_DRAWN", room)
    members = some_members(10)
    drawn = Drawn(members, stack, each)
    found: list[float] = []
    for n in chunks:
        start = len(found)
        own = drawn.take(members[start : start + n])
        assert len(own.whole["w"]) == n
        found += own.whole["w"][:, 0, 0].tolist()
    assert found == list(range(10))


@pytest.mark.parametrize(("room", "draws"), [(1, 5), (4 * EACH, 3), (100 * EACH, 1)])
def test_many_are_drawn_at_once_where_there_is_room(
    room: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked, "_DRAWN", room)
    sizes: list[int] = []

    def noting(members: Sequence[Coordinates]) -> Own:
        sizes.append(len(members))
        return stack(members)

    members = some_members(10)
    drawn = Drawn(members, noting, EACH)
    for start in range(0, 10, 2):
        drawn.take(members[start : start + 2])
    assert len(sizes) == draws
    assert sum(sizes) == 10, "nobody twice"


def test_chunks_that_shrink_on_the_way_find_their_members() -> None:
    members = some_members(10)
    drawn = Drawn(members, stack, EACH)
    for start, stop in ((0, 10), (0, 5), (0, 2), (2, 4), (9, 10), (4, 6), (0, 10)):
        found = drawn.take(members[start:stop]).whole["w"][:, 0, 0].tolist()
        assert found == list(range(start, stop))


# Chunks


def score_up_to(
    most: int, error: Exception, sizes: list[int]
) -> Callable[[Sequence[Coordinates]], list[Scores]]:
    def score(some: Sequence[Coordinates]) -> list[Scores]:
        sizes.append(len(some))
        if len(some) > most:
            raise error
        return [Scores(float(member.tensor("w")[0, 0])) for member in some]

    return score


OUT_OF_MEMORY: dict[str, Exception] = {
    "of a device": torch.OutOfMemoryError("CUDA out of memory"),
    "of Python": MemoryError(),
    "of the CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
}


@pytest.mark.parametrize("name", OUT_OF_MEMORY)
@pytest.mark.parametrize("most", [1, 2, 3, 7, 100])
def test_out_of_memory_the_rest_is_scored_half_as_many_at_a_time(most: int, name: str) -> None:
    sizes: list[int] = []
    score = score_up_to(most, OUT_OF_MEMORY[name], sizes)
    found = score_in_chunks(some_members(11), judge_of(nn.Linear(2, 2)), ROUND, 8, score)
    assert [one.value for one in found] == list(range(11))
    halves = [8, 4, 2, 1]
    failed = [size for size in halves if size > most]
    assert sizes[: len(failed)] == failed
    assert max(sizes[len(failed) :]) == max(size for size in halves if size <= most)


def test_without_memory_for_one_it_says_so() -> None:
    sizes: list[int] = []
    score = score_up_to(0, torch.OutOfMemoryError("no"), sizes)
    with pytest.raises(CannotScore, match="there is not enough memory for one member"):
        score_in_chunks(some_members(5), judge_of(nn.Linear(2, 2)), ROUND, 4, score)
    assert sizes == [4, 2, 1]


@pytest.mark.parametrize("error", [ValueError("no\nsense"), RuntimeError("size mismatch")])
def test_another_error_is_told_in_one_line_at_once(error: Exception) -> None:
    sizes: list[int] = []
    with pytest.raises(CannotScore) as told:
        score_in_chunks(
            some_members(5), judge_of(nn.Linear(2, 2)), ROUND, 4, score_up_to(0, error, sizes)
        )
    assert sizes == [4]
    assert str(told.value) == f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert told.value.__cause__ is error


def test_what_cannot_be_scored_is_passed_on_as_it_is() -> None:
    error = CannotScore("layer 'x' is odd")
    with pytest.raises(CannotScore, match="layer 'x' is odd") as told:
        score_in_chunks(
            some_members(2), judge_of(nn.Linear(2, 2)), ROUND, 2, score_up_to(0, error, [])
        )
    assert told.value is error


def test_a_member_whose_metric_raised_fails_and_one_that_is_not_finite() -> None:
    given = [
        Scores(0.5),
        Scores.failure(ValueError("no")),
        Scores(torch.tensor(float("nan"))),
        Scores(torch.tensor(0.25)),
    ]
    found = score_in_chunks(
        some_members(4), judge_of(nn.Linear(2, 2)), ROUND, 4, lambda some: given
    )
    assert [one.error for one in found] == [
        None,
        "ValueError: no",
        "the fitness was nan",
        None,
    ]
    assert [found[i].value for i in (0, 3)] == [0.5, 0.25]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, torch.OutOfMemoryError, None])
def test_each_chunk_meets_the_same_streams_and_model_and_leaves_them(
    error: type[BaseException] | None,
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    norm: Any = model[1]
    seen: list[tuple[Any, ...]] = []

    def score(some: Sequence[Coordinates]) -> list[Scores]:
        seen.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        assert norm.running_mean.tolist() == [0.0, 0.0]
        assert model.training
        model.eval()
        norm.running_mean.add_(1.0)
        if error is not None and len(seen) == 2:
            raise error("no")
        return [Scores(0.0) for _ in some]

    try:
        score_in_chunks(some_members(9), judge_of(model), ROUND, 3, score)
    except (CannotScore, KeyboardInterrupt):
        assert error in (ValueError, KeyboardInterrupt)
    assert len(seen) == {None: 3, torch.OutOfMemoryError: 8}.get(error, 2)
    assert len(set(seen)) == 1
    assert norm.running_mean.tolist() == [0.0, 0.0]
    assert model.training


@pytest.mark.parametrize(
    ("error", "expected"),
    [(error, True) for error in OUT_OF_MEMORY.values()]
    + [(RuntimeError("shapes differ"), False), (ValueError("can't allocate memory"), False)],
    ids=repr,
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


# Memory layout


def viewing(layout: MemoryLayout, seen: list[bool]) -> Callable[[], str]:
    def run() -> str:
        torch.rand(1)
        seen.append(layout.contiguous)
        if not layout.contiguous:
            layout.check(RuntimeError("view size is not compatible"))
        return "done"

    return run


def test_a_view_that_was_impossible_is_tried_once_more_with_contiguous_tensors() -> None:
    layout, seen = MemoryLayout(), []
    evaluator = judge_of(nn.Linear(2, 2))
    assert in_either_layout(evaluator, ROUND, viewing(layout, seen)) == "done"
    assert seen == [False, True]
    assert in_either_layout(evaluator, ROUND, viewing(layout, seen)) == "done"
    assert seen == [False, True, True], "it is remembered"


def test_the_second_try_meets_the_same_streams() -> None:
    layout, drawn = MemoryLayout(), []

    def run() -> None:
        drawn.append(float(torch.rand(())))
        layout.check(RuntimeError("view size is not compatible"))

    evaluator = judge_of(nn.Linear(2, 2))
    with evaluator.unchanged(ROUND):
        in_either_layout(evaluator, ROUND, run)
    assert len(drawn) == 2
    assert drawn[0] == drawn[1]


def test_other_errors_change_no_layout() -> None:
    layout = MemoryLayout()
    layout.check(RuntimeError("size mismatch"))
    assert not layout.contiguous
    with pytest.raises(NeedsContiguousError):
        layout.check(RuntimeError("view size is not compatible"))
    layout.check(RuntimeError("view size is not compatible"))  # it is not the layout, then


# Models that cannot be looked into


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def compiled_in_place() -> nn.Module:
    model = nn.Sequential(Inner())
    model[0].compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(Inner()), None),
        (nn.Sequential(nn.DataParallel(Inner())), "module '0' is a DataParallel"),
        (compiled_in_place(), "module '0' is compiled"),
        (torch.compile(nn.Sequential(Inner()), backend="eager"), "the model is compiled"),
    ],
    ids=["plain", "data parallel", "a layer compiled", "compiled"],
)
def test_a_model_that_cannot_be_looked_into_is_named(
    model: nn.Module, expected: str | None
) -> None:
    assert why_opaque(model) == expected


# Free memory


def test_free_memory_is_the_devices_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "cuda", SimpleNamespace(mem_get_info=lambda device: (7, 9), is_initialized=bool)
    )
    assert free_bytes(torch.device("cuda", 0)) == 7


@pytest.mark.parametrize("error", [AttributeError, OSError, ValueError])
def test_free_memory_that_cannot_be_told_is_plenty(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert free_bytes(torch.device("cpu")) > 2**20

    def unknown(name: str) -> int:
        raise error

    monkeypatch.setattr(stacked.os, "sysconf", unknown, raising=False)
    assert free_bytes(torch.device("cpu")) >= 2**60


# Against scoring in place

STACKING: dict[str, Engine] = {
    "vmap": Vmap(),
    "vmap in chunks": Vmap(chunk=2),
    "lowrank": SharedProduct(),
    "lowrank in chunks": SharedProduct(chunk=2),
}


class Noisy(nn.Module):
    """Draws random numbers in eval mode, too, and one of its buffers decides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 20), nn.Linear(20, 3)
        self.register_buffer("scale", torch.full((20,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.dropout(self.first(x), 0.5, training=True)
        out: Tensor = self.head(hidden * self.scale + torch.randn(len(x), 1).to(x.dtype))
        return out


def scores_of(engine: Any, dtype: torch.dtype = torch.float32, **options: Any) -> list[float]:
    torch.manual_seed(3)
    model = Noisy().to(dtype)
    x = torch.randn(11, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    batches = [(x[:7], torch.arange(7) % 3), (x[7:], torch.arange(4) % 3)]
    strategy = OpenAIES(0.1, population=6, noise=LowRank(1))
    search = Evolution(model, strategy, engine=engine, seed=5, **options)
    records = search.evolve(Fitness(model, batches, "neg-loss"), 2)
    found = [score for record in records for score in record.scores]
    assert len(set(found)) == 12
    return found


@pytest.mark.parametrize("name", STACKING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_members_meet_the_random_numbers_that_they_would_meet_in_place(
    name: str, dtype: torch.dtype
) -> None:
    """A warning would be an error, so these are not the scores of a fallback."""
    found = scores_of(STACKING[name], dtype)
    tight = dtype == torch.float64
    assert found == pytest.approx(scores_of("inplace", dtype), rel=1e-12 if tight else 1e-5)


@pytest.mark.parametrize("name", ["vmap", "vmap in chunks"])
def test_buffers_that_evolve_are_stacked_too(name: str) -> None:
    space = Only("scale", "head", buffers=True)
    found = scores_of(STACKING[name], space=space)
    assert found == pytest.approx(scores_of("inplace", space=space), rel=1e-5)
    alone = scores_of("inplace", space=Only("head"))
    assert all(a != b for a, b in zip(found, alone, strict=True)), "they move"


def test_the_shared_product_refuses_buffers_that_evolve() -> None:
    with pytest.warns(UserWarning, match="'lowrank' cannot score.*buffers=True.* are not weights"):
        scores_of("lowrank", space=Only("scale", buffers=True))
