"""The ranks of a group come to what one process comes to: bits, states and histories."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evostep import Evolution, OpenAIES
from evostep.engines.distributed import BYTES, Distributed, frame_of, shares_of

PROGRAM = Path(__file__).with_name("over_ranks.py")
FEW = ["fails", "resumed", "one all improves inplace", "openai buffers improves prefix"]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish(processes: list[subprocess.Popen[str]], seconds: float = 280) -> list[tuple[str, str]]:
    try:
        return [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def outcomes(ranks: int, folder: Path, cases: list[str]) -> list[Any]:
    """What each rank comes to, and what it notes of its shares."""
    folder.mkdir()
    processes = [
        start([str(PROGRAM), str(rank), str(ranks), str(folder), *cases]) for rank in range(ranks)
    ]
    said = finish(processes)
    assert [process.returncode for process in processes] == [0] * ranks, said
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    ((came, told),) = outcomes(1, tmp_path_factory.mktemp("alone") / "1", [])
    assert told == []  # nobody to share with
    return came


def apart(one: Any, other: Any, near: float, where: str = "") -> Iterator[str]:
    """Where two outcomes differ, by more than `near`."""
    if isinstance(one, Tensor):
        if one.is_floating_point() and near:
            same = torch.allclose(one, other, rtol=near, atol=near, equal_nan=True)
        else:
            same = one.shape == other.shape and bool(((one == other) | (one != one)).all())
        yield from () if same else (where,)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            yield from apart(one[key], other[key], near, f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from apart(*pair, near, f"{where}.{i}")
    elif isinstance(one, float) and isinstance(other, float):
        if one == one and abs(one - other) > near * max(1.0, abs(one)):
            yield f"{where}: {one} {other}"
    elif one != other:
        yield f"{where}: {one} {other}"


def exact(case: str) -> bool:
    """Whether bits are promised: nobody is scored together with others."""
    return case.split()[-1] not in ("auto", "vmap", "chunks", "lowrank")


def check(ranks: int, came: list[Any], alone: Any) -> None:
    for found, told in came:
        for case, one in found.items():
            near = 0.0 if exact(case) else 1e-3
            assert list(apart(alone[case], one, near)) == [], case
            assert list(apart(came[0][0][case], one, 0.0)) == [], f"ranks apart: {case}"
        assert told
        for members, size, scored, sent in told:
            assert size == ranks
            assert scored <= -(-members // ranks) + 1
            assert sent <= BYTES * max(1, -(-members // ranks))
    # all of it is scored, and once a phase a member by two ranks
    shares = [[scored for _, _, scored, _ in told] for _, told in came]
    extra = [
        sum(own) - told[0] for own, told in zip(zip(*shares, strict=True), came[0][1], strict=True)
    ]
    assert set(extra) <= {*range(ranks + 1)}  # who scores checks an engine
    assert 1 in extra


def test_two_ranks_come_to_what_one_process_does(tmp_path: Path, alone: Any) -> None:
    check(2, outcomes(2, tmp_path / "2", []), alone)


def test_three_ranks_do_so_with_uneven_shares(tmp_path: Path, alone: Any) -> None:
    """And with more ranks than members."""
    check(3, outcomes(3, tmp_path / "3", FEW), alone)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
def test_so_do_more_ranks_in_every_case(ranks: int, tmp_path: Path, alone: Any) -> None:
    check(ranks, outcomes(ranks, tmp_path / "many", []), alone)


def test_shares_are_even_and_keep_together_what_belongs_together() -> None:
    for members in range(40):
        for ranks in range(1, 7):
            for units in ([2], [8, 2], [3, 2], []):
                shares = shares_of(members, ranks, units)
                assert [i for share in shares for i in share] == list(range(members))
                assert len(shares) == ranks
                assert max(map(len, shares)) <= -(-members // ranks)
    assert shares_of(16, 2, [4, 2]) == [range(8), range(8, 16)]
    assert shares_of(12, 2, [4, 2]) == [range(6), range(6, 12)]  # not 8 and 4
    assert [len(share) for share in shares_of(8, 3, [2])] == [3, 3, 2]
    assert all(frame_of(n, 4) <= BYTES * max(1, -(-n // 4)) for n in range(100))


def test_outside_a_group_it_scores_as_ever_and_settings_are_checked() -> None:
    for engine in ("distributed", Distributed("inplace"), Distributed(shard=False)):
        w = torch.ones(3)
        search = Evolution({"w": w}, OpenAIES(0.1, population=4), engine=engine)
        assert len(search.evolve(lambda w=w: -float(w.square().sum()))[0].scores) == 4
    with pytest.raises(ValueError, match="timeout must be seconds above 0, got -1"):
        Distributed(timeout=-1)
    with pytest.raises(ValueError, match="unknown engine 'vmpa': did you mean vmap"):
        Distributed("vmpa")
    with pytest.raises(ValueError, match="over must be an engine for one rank"):
        Distributed(Distributed())
