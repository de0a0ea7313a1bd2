"""Ranks that do not do the same, fail, stop, hang or die: one line on every rank, nobody waits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evostep import ESGD, Evolution, Fitness, OpenAIES
from evostep.ranks import default_timeout

PROGRAM = Path(__file__).with_name("ranks_apart.py")
START = "start every rank with the same code, configuration, weights and OMP_NUM_THREADS [kept]"
SAME = "every rank has to score the same examples (no DistributedSampler) the same way [kept]"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each rank said of each case."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(PROGRAM), str(rank), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        told = [rank.communicate(timeout=200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 9], told  # the second dies as it should
    return [dict(line.split(": ", 1) for line in out.splitlines()) for out, _ in told]


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("seed", f"rank 1 differs from rank 0 in the seed (0 on rank 0, 1 on rank 1): {START}"),
        ("weights", f"rank 1 differs from rank 0 in the weights: {START}"),
        (
            "threads",
            "rank 1 differs from rank 0 in the number of threads (1 on rank 0, 2 on rank 1): "
            + START,
        ),
        (
            "parent",
            "the fitness gives the weights as they stand 0.0942621231 on rank 0 and 0.344262123 "
            f"on rank 1: {SAME}",
        ),
        (
            "member",
            f"the fitness gives member 0 0.0886566639 on rank 0 and 0.338656664 on rank 1: {SAME}",
        ),
        (
            "ddp",
            "the fitness scores a DistributedDataParallel, whose forward waits for the other "
            "processes: score the module inside, evostep.integrations.unwrapped(model) [kept]",
        ),
        (
            "esgd",
            "ESGD in a group of 2 processes would drift apart, as its individuals do not go over "
            "ranks: evolve in one process, outside the group",
        ),
    ],
)
def test_ranks_that_differ_are_refused_in_the_same_line(
    said: list[dict[str, str]], case: str, line: str
) -> None:
    assert [rank[case] for rank in said] == [line, line]


def test_another_strategy_or_call_is_told_with_both_values(said: list[dict[str, str]]) -> None:
    for rank in said:
        assert "in the strategy (RandomMutation(sigma=0.2, " in rank["strategy"]
        assert "on rank 0, RandomMutation(sigma=1.2, " in rank["strategy"]
        assert "{'generations': 3, 'forwards': None, 'seconds': None} on rank 1" in rank["call"]


def test_who_leaves_is_named_and_the_group_goes_on(said: list[dict[str, str]]) -> None:
    first, second = said
    assert first["raises"] == "rank 1 has left evolve (OSError: no file), so all others do [kept]"
    assert first["ctrl-c"] == "rank 1 has left evolve (KeyboardInterrupt), so all others do [kept]"
    assert first["callback"].startswith("rank 1 has left evolve (ValueError: of its own)")
    assert second["raises"] == "no file [kept]"
    assert second["ctrl-c"] == "interrupted, weights kept"
    assert second["callback"].startswith("of its own")


def test_a_callback_of_one_rank_and_time_stop_all(said: list[dict[str, str]]) -> None:
    assert said[0]["stops"] == said[1]["stops"] == said[0]["in place"]
    assert said[0]["stops"].startswith("2 ")
    assert [rank["seconds"] for rank in said] == ["stopped", "stopped"]


def test_an_engine_that_one_rank_cannot_use_is_used_by_none(said: list[dict[str, str]]) -> None:
    bits = [rank["gives up"].split()[1] for rank in said]
    assert bits[0] == bits[1]
    assert all("'verified': [], 'given_up': ['vmap']" in rank["gives up"] for rank in said)


def test_each_rank_may_evolve_by_itself(said: list[dict[str, str]]) -> None:
    assert {rank["one rank each"] for rank in said} == {said[0]["in place"]}


def test_statistics_are_made_those_of_the_first(said: list[dict[str, str]]) -> None:
    assert [rank["statistics"] for rank in said] == ["[0.0, 0.0, 0.0, 0.0, 0.0]"] * 2


def test_who_hangs_does_not_come_or_dies_is_named(said: list[dict[str, str]]) -> None:
    first, second = said
    assert first["hangs"].startswith("rank 1 has not come within 4 s in evolve: every rank has to")
    assert second["hangs"].startswith("a rank has gone, or has waited in vain for this one")
    assert first["alone"].startswith("rank 1 has not come within 1 s in evolve: every rank has to")
    assert first["dies"].startswith("rank 1 has gone in evolve (RuntimeError: ")


def test_the_timeout_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_timeout() == 1800
    monkeypatch.setenv("EVOSTEP_TIMEOUT", "7.5")
    assert default_timeout() == 7.5
    for wrong in ("soon", "0", "-1", "nan", "1e300"):
        monkeypatch.setenv("EVOSTEP_TIMEOUT", wrong)
        with pytest.raises(ValueError, match=f"EVOSTEP_TIMEOUT must be seconds .*{wrong}"):
            default_timeout()


def test_a_population_is_refused_in_a_group_and_one_process_may_evolve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = nn.Linear(4, 3)
    fitness = Fitness(model, [(torch.randn(6, 4), torch.arange(6) % 3)], "accuracy")
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with pytest.raises(ValueError, match="ESGD in a group of 2 processes would drift apart"):
        ESGD([(model, base)], fitness, offspring=1, parents=1, elite=1).evolve()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 1)
    search = Evolution({"w": torch.ones(2)}, OpenAIES(0.1, population=4))
    assert len(search.evolve(lambda: 1.0 - float(search.slots.live["w"].square().sum()))) == 1
