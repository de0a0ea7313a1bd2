"""Several processes: evolve is refused in one line, on all ranks or on one, and nobody waits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from evostep import ESGD, Evolution, Evolved, Fitness, OpenAIES

REFUSED = r"evolve in a group of 2 processes would hang or drift apart: evolve in one process"

RANK = """
import datetime, sys, torch, evostep, torch.distributed as dist
from torch import nn
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=60),
)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
search = evostep.Evolution(net, evostep.OpenAIES(0.1, population=4))
fitness = evostep.Fitness(net, [(torch.randn(8, 8), torch.arange(8) % 3)], "accuracy")
before = [p.detach().clone() for p in net.parameters()]
def attempt():
    try:
        search.evolve(fitness, 2)
    except ValueError as error:
        print(error, flush=True)
if rank == 0:
    attempt()  # alone: the other does not come
dist.barrier()
attempt()  # all
assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before))
dist.barrier()
dist.destroy_process_group()
search.evolve(fitness)
print("evolved", flush=True)
"""


def test_two_processes_are_refused_and_nobody_waits(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for (out, _), times in zip(said, (2, 1), strict=True):
        lines = out.splitlines()
        assert len(lines) == times + 1
        assert lines[-1] == "evolved", "outside the group"
        assert all(line.startswith(REFUSED) for line in lines[:-1])


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


def test_every_kind_of_evolve_is_refused(two: None) -> None:
    model = nn.Linear(4, 3)
    fitness = Fitness(model, [(torch.randn(6, 4), torch.arange(6) % 3)], "accuracy")
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = OpenAIES(0.1, population=4)
    for evolve in (
        lambda: Evolution(model, strategy).evolve(fitness),
        lambda: Evolution(model, strategy).evolve(lambda: 0.0),
        lambda: Evolved(base, strategy).evolve(fitness),
        lambda: ESGD([(model, base)], fitness, offspring=1, parents=1, elite=1).evolve(),
    ):
        with pytest.raises(ValueError, match=REFUSED) as refused:
            evolve()
        assert "\n" not in str(refused.value)


def test_a_group_of_one_process_may_evolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    w = torch.ones(2)
    search = Evolution({"w": w}, OpenAIES(0.1, population=4))
    assert len(search.evolve(lambda: -float(w.square().sum()))) == 1
