"""The table: every engine x space x strategy x model gives what scoring in place gives."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import (
    SNES,
    AllWeights,
    Evolution,
    Fitness,
    GuidedES,
    Only,
    OpenAIES,
    RandomMutation,
    RandomSearch,
)
from evostep.acceptance.base import Rule
from evostep.engines import ENGINES
from evostep.noise import LowRank
from evostep.record import Record
from evostep.scoring.scores import Scores
from evostep.spaces.base import Space
from evostep.strategies.base import Strategy

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 6, (12, 4), generator=torch.Generator().manual_seed(2))
Y = torch.arange(12) % 3


class Never(Rule):
    """Scores each candidate and keeps none."""

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        return False


class Net(nn.Module):
    """Two blocks, a norm and a head; variants change one thing each."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.block1 = nn.Linear(6, 8)
        self.between = nn.Linear(8, 8)
        self.norm = norm or nn.LayerNorm(8)
        self.block2 = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.block2(self.norm(torch.tanh(self.between(self.block1(x))))))


class Dropped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block2.append(nn.Dropout(0.5))


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        first: Any = self.block2[0]
        self.between.weight = first.weight


class Buffered(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.block2(self.norm(self.between(self.block1(x)) + self.shift)))


class Twice(Net):
    """One module in two places, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.block2

    def forward(self, x: Tensor) -> Any:
        return self.head(self.again(self.block2(self.norm(self.between(self.block1(x))))))


class Words(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 6)

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.embed(x).mean(1))


class Several(Net):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {"classes": out, "size": out.square().sum(1)}


def batch_norm() -> Net:
    model = Net(nn.BatchNorm1d(8))
    with torch.no_grad():
        model.train()(X)  # statistics other than those at the start
    return model


def of_both(outputs: dict[str, Tensor], targets: Tensor) -> float:
    loss = F.cross_entropy(outputs["classes"], targets) + 0.01 * outputs["size"].mean()
    return -float(loss)


MODELS: dict[str, Callable[[], Net]] = {
    "batch norm": batch_norm,
    "dropout": Dropped,
    "tied weights": Tied,
    "buffers": Buffered,
    "shared modules": Twice,
    "integer inputs": Words,
    "several outputs": Several,
}
SPACES: dict[str, Callable[[], Space]] = {
    "all": AllWeights,
    "head": lambda: Only("head"),
    "norm": lambda: Only("norm"),
    "last block": lambda: Only("block2", "head"),
}
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "openai-es": lambda: OpenAIES(0.1, population=6),
    "low rank": lambda: OpenAIES(0.1, population=6, noise=LowRank(1)),
    "mutation": lambda: RandomMutation(0.1, population=5),
    "snes": lambda: SNES(0.1, population=5),
    "guided": lambda: GuidedES(0.1, population=6),
    "random search": lambda: RandomSearch(0.1, population=5),
}


def state_of(model: nn.Module) -> dict[str, Any]:
    numpy_state: Any = np.random.get_state()
    return {
        "bits": {name: t.clone() for name, t in model.state_dict().items()},
        "objects": {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]},
        "grad": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [
            (list(m._forward_hooks), list(m._forward_pre_hooks), "forward" in vars(m))
            for m in model.modules()
        ],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": numpy_state[1].tolist(),
    }


def assert_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    bits, others = before.pop("bits"), after.pop("bits")
    assert bits.keys() == others.keys()
    assert all(torch.equal(bits[name], others[name]) for name in bits)
    assert before == after


def run(model: str, space: str, strategy: str, engine: str) -> tuple[list[Record], list[str]]:
    """Two generations, none accepted; give the records and what was warned of."""
    torch.manual_seed(5)
    random.seed(5)
    net = MODELS[model]().train()
    net.block1.eval()  # mixed modes
    next(net.parameters()).requires_grad_(False)
    if engine != "workers":  # which leaves to scoring in place what a user's hook may do
        net.head.register_forward_hook(lambda *_: None)
    inputs = TOKENS if model == "integer inputs" else X
    metric: Any = of_both if model == "several outputs" else "neg-loss"
    fitness = Fitness(net, [(inputs[:7], Y[:7]), (inputs[7:], Y[7:])], metric)
    search = Evolution(
        net, STRATEGIES[strategy](), space=SPACES[space](), accept=Never(), seed=3, engine=engine
    )
    if strategy == "guided":
        search.guide({name: torch.ones_like(p) for name, p in net.named_parameters()})
    before = state_of(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = search.evolve(fitness, 2)
    assert_untouched(before, state_of(net))
    return records, [str(one.message) for one in caught]


# Every pair of model and strategy, in spaces that take turns: every pair of anything is there.
GRID = [
    pytest.param(model, space, strategy, marks=() if (i + j) % 4 == k else pytest.mark.slow)
    for i, model in enumerate(MODELS)
    for j, strategy in enumerate(STRATEGIES)
    for k, space in enumerate(SPACES)
]


@pytest.mark.parametrize(("model", "space", "strategy"), GRID)
def test_every_engine_gives_the_records_of_scoring_in_place(
    model: str, space: str, strategy: str
) -> None:
    expected, warned = run(model, space, strategy, "inplace")
    assert not warned
    assert len(set(expected[0].scores)) > 1
    for engine in ENGINES:
        if engine == "inplace":
            continue
        records, warned = run(model, space, strategy, engine)
        assert len(warned) <= 1, engine
        assert all(text.startswith(f"engine {engine!r} cannot score") for text in warned), warned
        assert (not warned) == takes(engine, model, space, strategy), (engine, warned)
        assert len(records) == len(expected)
        for one, other in zip(records, expected, strict=True):
            if engine == "racing":  # of those that it drops it gives estimates
                assert max(one.scores) <= max(other.scores) + 1e-6
            else:
                assert one.scores == pytest.approx(other.scores, rel=1e-5, abs=1e-6), engine
            assert one.parent == pytest.approx(other.parent, rel=1e-5), engine
            assert (one.accepted, one.failed) == (other.accepted, other.failed), engine
            assert (one.candidate is None) == (other.candidate is None), engine
            if other.candidate is not None:
                assert one.candidate == pytest.approx(other.candidate, rel=1e-4), engine


def takes(engine: str, model: str, space: str, strategy: str) -> bool:
    """Return whether an engine should take a case rather than leave it to scoring in place."""
    if engine == "lowrank":
        return strategy == "low rank" and space != "norm"  # no matrix moves there
    if engine == "prefix":
        return space != "all"
    if engine == "racing":
        return strategy in ("mutation", "random search") and model != "several outputs"
    return engine != "workers" or model != "several outputs"  # its metric is one's own
