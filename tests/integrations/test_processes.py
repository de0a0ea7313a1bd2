"""Two processes under DistributedDataParallel share the members and come to the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evostep import Evolved, Fitness, OpenAIES
from evostep.integrations import evolve
from evostep.integrations.phases import Phases

HEAD = """
import datetime, sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import evostep
from evostep.integrations import evolve, unwrapped
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=200),
)

def begin():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    strategy = evostep.SNES(sigma=0.1, population=6)  # has a state of its own
    optimizer = evostep.Evolved(base, strategy, momentum="reset")
    return DistributedDataParallel(net), optimizer

x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

def go_on(model, optimizer, steps):
    fitness = evostep.Fitness(unwrapped(model), [(x, y)], "neg-loss")
    model.train()
    for step in steps:
        optimizer.zero_grad()
        mine = slice(rank + 2 * (step % 8), 64, 16)  # other examples in each process
        nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
        optimizer.step()
        if step % 5 == 4:
            records = evolve(optimizer, fitness, 2)
    return records

def state(model, optimizer):
    return unwrapped(model).state_dict(), optimizer.state_dict(), [
        (r.generation, r.scores, r.moved) for r in optimizer.history
    ]
"""

TRAIN = """
import copy
whole, half, rest = begin(), begin(), begin()
go_on(*whole, range(40))
go_on(*half, range(20))
saved = copy.deepcopy(state(*half))
unwrapped(rest[0]).load_state_dict(saved[0])
rest[1].load_state_dict(saved[1])
go_on(*rest, range(20, 40))
torch.save((state(*whole), state(*rest)), f"{folder}/{rank}.pt")
"""

FAIL = """
model, optimizer = begin()
net = unwrapped(model)
def attempt(fitness, **options):
    try:
        evolve(optimizer, fitness, **options)
    except ValueError as error:
        print(error, flush=True)
attempt(evostep.Fitness(model, [(x, y)], "accuracy"))
class Broken(Exception):
    pass
def broken():
    raise ValueError("no such file")
attempt(broken)
before = [p.clone() for p in net.parameters()]
attempt(evostep.Fitness(net, [(x, y)], "accuracy"), generations=-1)
assert all(map(torch.equal, before, net.parameters()))
def stop(record):
    if record.generation == 1:
        raise ValueError("stopped within")
attempt(evostep.Fitness(net, [(x, y)], "neg-loss"), generations=4, on_generation=stop)
assert not all(map(torch.equal, before, net.parameters()))
weights = sum(float(p.detach().double().sum()) for p in net.parameters())
print(optimizer.evolution.generation, len(optimizer.history), weights, flush=True)
dist.barrier()
"""


def run(program: str, folder: Path) -> list[str]:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", HEAD + program, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=250) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [out for out, _ in said]


def test_ranks_stay_alike_and_twenty_steps_and_twenty_are_forty(tmp_path: Path, same: Any) -> None:
    run(TRAIN, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    (whole, rest), other = ranks[0], ranks[1][0]
    same(whole[:2], rest[:2])
    moved = [moved for _, _, moved in whole[2]]
    assert len(moved) == 16
    assert any(moved)
    # weights, BatchNorm statistics, momentum, evolution's state and history are the first's
    same(whole, other)


def test_errors_are_told_in_all_processes_and_nobody_waits(tmp_path: Path) -> None:
    told = [out.splitlines() for out in run(FAIL, tmp_path)]
    assert told[0][-1] == told[1][-1]  # what was done before it failed is done in both
    assert told[0][-1].startswith("2 2 ")
    for rank, lines in enumerate(told):
        assert lines[0].startswith("the fitness scores a DistributedDataParallel, whose forward")
        assert lines[1] == "no such file"
        assert lines[2] == "generations must be >= 0, got -1"
        left = "rank 0 has left evolve (ValueError: stopped within), so all others do"
        assert lines[3] == (left if rank == 1 else "stopped within")


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 1)


def test_a_sharded_optimizer_is_refused(two: None, strategy: OpenAIES) -> None:
    class Sharded(torch.optim.SGD):
        def consolidate_state_dict(self) -> None:
            pass

    model = nn.Linear(2, 2)
    optimizer = Evolved(Sharded(model.parameters(), lr=0.1), strategy)
    fitness = Fitness(model, [(torch.randn(4, 2), torch.arange(4) % 2)])
    with pytest.raises(ValueError, match="Sharded shards its state over processes"):
        evolve(optimizer, fitness)


class FullyShardedDataParallel(nn.Sequential):
    """Of the name by which it is known: to make one takes a group."""


@pytest.mark.parametrize(
    ("wrap", "options", "said"),
    [
        (FullyShardedDataParallel, {}, "evolve an unsharded copy of the model"),
        (nn.Sequential, {"mode": "train"}, "SyncBatchNorm in train mode, which waits"),
    ],
)
def test_forwards_that_wait_for_others_are_refused(
    two: None, strategy: OpenAIES, wrap: Any, options: Any, said: str
) -> None:
    model = wrap(nn.Linear(2, 2), nn.SyncBatchNorm(2))
    optimizer = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), strategy)
    fitness = Fitness(model, [(torch.randn(4, 2), torch.arange(4) % 2)], **options)
    with pytest.raises(ValueError, match=said):
        evolve(optimizer, fitness)


def test_trackers_are_told_in_the_first_process_alone(
    two: None, strategy: OpenAIES, watch: Any
) -> None:
    model = nn.Linear(2, 2)
    optimizer = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), strategy)
    phases = Phases(lambda model: lambda: 0.0, trackers=[watch])
    phases.begin([optimizer])
    with pytest.warns(UserWarning, match="has evolved nothing"):
        phases.end()
    assert watch.calls == []
