"""What evolution comes to on one rank of several, or alone: run by `test_distributed.py`.

    python over_ranks.py RANK RANKS FOLDER [CASE ...]

saves what each case came to as FOLDER/RANK.pt.
"""

from __future__ import annotations

import copy
import datetime
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from evostep import (
    CMAES,
    SNES,
    SPSA,
    AllWeights,
    Always,
    Evolution,
    Fitness,
    GuidedES,
    Improves,
    Ladder,
    LowRank,
    Only,
    OpenAIES,
    PairedTest,
    RandomMutation,
    RandomSearch,
    Safe,
    Span,
)
from evostep.engines.distributed import Shares
from evostep.engines.lowrank import SharedProduct
from evostep.engines.prefix import Prefix
from evostep.engines.vmap import Vmap

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
BATCHES = [(X[:20], Y[:20]), (X[20:32], Y[20:32])]
OTHERS = [(X[32:], Y[32:])]

STRATEGIES: dict[str, Callable[[], Any]] = {
    "mutation": lambda: RandomMutation(0.2, population=7),
    "openai": lambda: OpenAIES(0.1, lr=0.05, population=8),
    "snes": lambda: SNES(0.1, population=6),
    "search": lambda: RandomSearch(0.2, population=5),
    "spsa": lambda: SPSA(0.1, lr=0.05),
    "guided": lambda: GuidedES(0.1, lr=0.05, population=6),
    "safe": lambda: RandomMutation(0.2, population=6, scale=Safe("abs", target=0.05)),
    "lowrank": lambda: OpenAIES(0.1, lr=0.05, population=12, noise=LowRank(1)),
    "cma": lambda: CMAES(0.1, population=6),
    "one": lambda: RandomMutation(0.2, population=1),
}
SPACES: dict[str, Callable[[], Any]] = {
    "all": AllWeights,
    "head": lambda: Only("3.*"),
    "buffers": lambda: Only("0.*", "1.*", buffers=True),
    "span": lambda: Span(memory=3),
}
RULES: dict[str, Callable[[], Any]] = {
    "always": Always,
    "improves": Improves,
    "phase": lambda: Improves(every="phase"),
    "mcnemar": lambda: PairedTest(0.9, every="generation"),
    "t": lambda: PairedTest(0.9, "t"),
    "permutation": lambda: PairedTest(0.9, "permutation", every="generation"),
    "ladder": Ladder,
}
ENGINES: dict[str, Callable[[], Any]] = {
    "inplace": lambda: "inplace",
    "auto": lambda: "auto",
    "vmap": lambda: Vmap(),
    "chunks": lambda: Vmap(chunk=2),
    "lowrank": lambda: SharedProduct(chunk=3),
    "prefix": Prefix,
}
METRICS = {"mcnemar": "accuracy", "permutation": "macro-f1"}
CASES = (
    [f"{strategy} all improves inplace" for strategy in STRATEGIES]
    + [f"{strategy} head always auto" for strategy in STRATEGIES]
    + [f"mutation {space} {rule} inplace" for space in SPACES for rule in RULES]
    + [f"openai {space} improves {engine}" for space in SPACES for engine in ENGINES]
    + ["snes head phase vmap", "mutation all mcnemar vmap", "mutation head t prefix"]
    + ["lowrank all always lowrank", "lowrank all improves inplace"]
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    net(X)  # statistics of its own
    return net.eval()


def run(case: str, engine: Any = None) -> Any:
    strategy, space, rule, kind = case.split()
    torch.manual_seed(0)
    net = network()
    search = Evolution(
        net,
        STRATEGIES[strategy](),
        space=SPACES[space](),
        accept=RULES[rule](),
        engine=ENGINES[kind]() if engine is None else engine,
        seed=3,
    )
    if space == "span":
        for _ in range(3):
            search.remember()
            with torch.no_grad():
                for p in net.parameters():
                    p.add_(0.1 * torch.randn(p.shape))
    if strategy == "guided":
        search.guide({name: torch.ones_like(p) for name, p in net.named_parameters()})
    calibration = [(X, Y)] if space == "span" else None
    fitness = Fitness(net, BATCHES, METRICS.get(rule, "neg-loss"), calibration=calibration)
    second = Fitness(net, OTHERS, METRICS.get(rule, "neg-loss")) if rule == "ladder" else None
    search.evolve(fitness, 2, accept_on=second)
    search.evolve(fitness, 3, accept_on=second, max_forwards=400)
    return outcome(net, search)


def outcome(net: nn.Module, search: Evolution) -> Any:
    records = [asdict(replace(record, seconds=0.0)) for record in search.history]
    return copy.deepcopy([net.state_dict(), search.state_dict(), records])


def fails(_: Any = None) -> Any:
    """Some members raise, some are NaN, one has no memory; a bare callable scores."""
    net = network()

    def score() -> float:
        with torch.no_grad():
            value = float(net(X).sum())
        what = int(abs(value) * 1e4) % 5 if value != parent else 4
        if what == 0:
            raise ArithmeticError(f"member of {value:.6f} " + "cannot be scored, " * 40)
        if what == 1:
            raise torch.OutOfMemoryError("of memory")
        return float("nan") if what == 2 else value

    with torch.no_grad():
        parent = float(net(X).sum())
    search = Evolution(net, RandomMutation(0.2, population=9), seed=1)
    search.evolve(score, 3)
    return outcome(net, search)


def resumed(_: Any = None) -> Any:
    """Saved in the middle of a phase, by a callback that stops it, and gone on with."""
    net = network()
    fitness = Fitness(net, BATCHES, "neg-loss")

    def search() -> Evolution:
        return Evolution(net, SNES(0.1, population=6), accept=Improves(every="phase"), seed=2)

    first, saved = search(), []

    def save(record: Any) -> bool:
        saved[:] = [copy.deepcopy((net.state_dict(), first.state_dict()))]
        return record.generation == 1

    first.evolve(fitness, 5, on_generation=save)
    second = search()
    net.load_state_dict(saved[0][0])
    second.load_state_dict(saved[0][1])
    second.evolve(fitness, 3)
    return outcome(net, second)


MORE = {"fails": fails, "resumed": resumed}


def watch_shares() -> list[tuple[int, ...]]:
    """Note members, ranks, scorings of this rank and its bytes of each generation."""
    told: list[tuple[int, ...]] = []
    score = Shares.score

    def noted(self: Shares, round: Any, members: Any) -> Any:
        scores = score(self, round, members)
        failed = any(one.failed for one in scores)
        told.append((len(members), self.ranks.size, self.scored, 0 if failed else self.sent))
        return scores

    Shares.score = noted  # type: ignore[method-assign]
    return told


def main(rank: int, ranks: int, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if ranks > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=ranks,
            timeout=datetime.timedelta(seconds=60),
        )
    told = watch_shares()
    came = {}
    for case in cases or [*CASES, *MORE]:
        came[case] = MORE[case]() if case in MORE else run(case)
    torch.save((came, told), folder / f"{rank}.pt")
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
