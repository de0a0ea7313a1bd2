"""Ranks that do not do the same, fail, stop or hang: run by `test_ranks.py`, as RANK STORE.

Each case prints one line: what evolve raised, or what came of it.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from evostep import ESGD, SNES, Evolution, Fitness, RandomMutation
from evostep.checksums import checksum
from evostep.engines.base import CannotScore
from evostep.engines.distributed import Distributed
from evostep.engines.vmap import Batched

RANK, RANKS = int(sys.argv[1]) if __name__ == "__main__" else 0, 2
X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 3
MUTATION = RandomMutation(0.2, population=6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    net(X)
    return net.eval()


class Scores:
    """A fitness that goes wrong on one rank, for the parent or for a member."""

    def __init__(self, net: nn.Module, wrong: Callable[[], float], *, parent: bool, rank: int = 1):
        self.net, self.wrong, self.of_parent, self.rank = net, wrong, parent, rank
        self.parent = self.value()

    def value(self) -> float:
        with torch.no_grad():
            return float(self.net(X).square().mean())

    def __call__(self) -> float:
        value = self.value()
        if self.rank == RANK and (value == self.parent) == self.of_parent:
            return value + self.wrong()
        return value


def throw(error: BaseException) -> Callable[[], float]:
    def raise_it() -> float:
        raise error

    return raise_it


def attempt(
    fitness: Callable[[nn.Module], Any] = lambda net: Fitness(net, [(X, Y)], "neg-loss"),
    strategy: Any = MUTATION,
    change: Callable[[nn.Module], object] = lambda net: None,
    engine: Any = "inplace",
    seed: int = 0,
    generations: int = 2,
    **options: Any,
) -> str:
    net = network()
    change(net)
    search = Evolution(net, strategy, seed=seed, engine=engine)
    before = checksum(net.state_dict())
    try:
        search.evolve(fitness(net), generations, **options)
    except KeyboardInterrupt:
        return f"interrupted, weights {'kept' if before == checksum(net.state_dict()) else 'LOST'}"
    except Exception as error:
        assert "\n" not in str(error), "more than one line"  # noqa: PT017
        kept = "kept" if before == checksum(net.state_dict()) else "moved"
        return f"{error} [{kept}]"
    kinds = search._findings.state()
    return f"{search.generation} {checksum([net.state_dict(), search.state_dict()])} {kinds}"


def shift(net: nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(RANK)


def other_statistics(net: nn.Module) -> None:
    net[1].running_mean.fill_(RANK)  # type: ignore[index, union-attr, operator]


def no_batches_on_rank_1() -> str:
    score = Batched.score

    def fails(self: Any, round: Any, members: Any) -> Any:
        if RANK == 1:
            raise CannotScore("rank 1 has another library")
        return score(self, round, members)

    with mock.patch.object(Batched, "score", fails):
        return attempt(engine="vmap")


def ddp() -> str:
    net = nn.parallel.DistributedDataParallel(network())
    return attempt(lambda _: Fitness(net, [(X, Y)]), change=lambda _: None)


def esgd() -> str:
    net = network()
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    try:
        ESGD([(net, base)], lambda: 0.0, offspring=1, parents=1, elite=1).evolve()
    except ValueError as error:
        return str(error)
    return "evolved"


def statistics_of_the_first() -> str:
    net = network()
    other_statistics(net)
    Evolution(net, SNES(0.1, population=4)).evolve(Fitness(net, [(X, Y)], "neg-loss"))
    return str(net[1].running_mean.tolist())


def slow(seconds: float) -> Callable[[nn.Module], Scores]:
    def sleep() -> float:
        time.sleep(seconds)
        return 0.0

    return lambda net: Scores(net, sleep, parent=False)


def until_time_is_up() -> str:
    came = attempt(slow(0.05), generations=1000, max_seconds=1.0).split()
    return "stopped" if 1 < int(came[0]) < 1000 else " ".join(came)


def two_threads_on_rank_1() -> str:
    torch.set_num_threads(1 + RANK)
    try:
        return attempt()
    finally:
        torch.set_num_threads(1)


def first_alone() -> str:
    if RANK == 1:
        time.sleep(2)
        return ""
    return attempt(engine=Distributed("inplace", timeout=1))


CASES: dict[str, Callable[[], str]] = {
    "strategy": lambda: attempt(strategy=replace(MUTATION, sigma=0.2 + RANK)),
    "seed": lambda: attempt(seed=RANK),
    "call": lambda: attempt(generations=2 + RANK),
    "weights": lambda: attempt(change=shift),
    "threads": two_threads_on_rank_1,
    "parent": lambda: attempt(lambda net: Scores(net, lambda: 0.25, parent=True)),
    "member": lambda: attempt(lambda net: Scores(net, lambda: 0.25, parent=False)),
    "raises": lambda: attempt(lambda net: Scores(net, throw(OSError("no file")), parent=True)),
    "ctrl-c": lambda: attempt(lambda net: Scores(net, throw(KeyboardInterrupt()), parent=False)),
    "callback": lambda: attempt(
        on_generation=lambda _: RANK == 1 and throw(ValueError("of its own"))()
    ),
    "stops": lambda: attempt(
        generations=5, on_generation=lambda r: RANK == 1 and r.generation == 1
    ),
    "in place": lambda: attempt(),
    "gives up": no_batches_on_rank_1,
    "one rank each": lambda: attempt(engine=Distributed("inplace", shard=False)),
    "seconds": until_time_is_up,
    "statistics": statistics_of_the_first,
    "ddp": ddp,
    "esgd": esgd,
    "hangs": lambda: attempt(slow(2), engine=Distributed("inplace", timeout=4)),
    "alone": first_alone,
    "dies": lambda: attempt(lambda net: Scores(net, lambda: os._exit(9), parent=False)),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{sys.argv[2]}",
        rank=RANK,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    for name, case in CASES.items():
        print(f"{name}: {case()}", flush=True)
