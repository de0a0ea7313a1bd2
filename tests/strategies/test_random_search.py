"""RandomSearch: a slow twin, samples that do not follow the scores, an anchor that stays."""

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from evostep import Always, Evolution, Improves
from evostep.noise import LowRank, draw
from evostep.strategies.random_search import RandomSearch


def loss(w: Tensor) -> float:
    return float((w - 3.0).square().sum())


def sample(anchor: Tensor, sigma: float, kind: Any, generation: int, i: int, seed: int) -> Tensor:
    eps = draw(kind, anchor, seed=seed, generation=generation, member=i, name="w")
    return anchor + sigma * eps


@pytest.mark.parametrize("rule", [Always(), Improves()])
@pytest.mark.parametrize("kind", ["normal", "uniform", LowRank(1)])
def test_agrees_with_the_slow_twin_step_by_step(rule: Any, kind: Any) -> None:
    w = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    anchor, best = w.clone(), w.clone()
    strategy = RandomSearch(0.7, population=5, scale="absolute", noise=kind)
    search = Evolution({"w": w}, strategy, accept=rule, seed=2)
    moves = 0
    for generation in range(30):
        search.evolve(lambda: -loss(w))
        drawn = [sample(anchor, 0.7, kind, generation, i, 2) for i in range(5)]
        better = min(drawn, key=loss)
        if loss(better) < loss(best):
            best, moves = better, moves + 1
        assert torch.allclose(w, best, atol=1e-6)
    assert moves >= 2  # it did find something, so that the anchor differs from the center


def test_samples_depend_on_no_score() -> None:
    """The same members are drawn whether every proposal is accepted or none is."""

    def members(sign: float, rule: Any) -> list[Tensor]:
        w = torch.tensor([1.0, -2.0, 0.5])
        seen: list[Tensor] = []

        def fitness() -> float:
            seen.append(w.clone())
            return sign * len(seen) if rule is not None else 0.0

        strategy = RandomSearch(0.5, population=4)
        search = Evolution({"w": w}, strategy, accept=rule or Improves(), seed=1)
        search.evolve(fitness, generations=6)
        return [t for k, t in enumerate(seen) if k % 5]  # without the parents

    rising, flat = members(1.0, Always()), members(1.0, None)
    assert len(rising) == len(flat) == 24
    assert all(torch.equal(a, b) for a, b in zip(rising, flat, strict=True))


def test_the_best_is_kept_under_every_rule() -> None:
    w = torch.tensor([1.0, -2.0])
    search = Evolution({"w": w}, RandomSearch(0.5, population=3), accept=Always())
    kept = [record.parent for record in search.evolve(lambda: -loss(w), generations=40)]
    assert kept == sorted(kept)
    assert kept[-1] > kept[0]


def test_a_move_by_something_else_opens_a_new_search() -> None:
    w = torch.tensor([1.0, -2.0])
    strategy = RandomSearch(0.5, population=6, scale="absolute")
    search = Evolution({"w": w}, strategy, seed=4)
    search.evolve(lambda: -loss(w), generations=5)
    with torch.no_grad():
        w.sub_(10.0)  # a gradient step, say
    anchor = w.clone()
    seen = []

    def fitness() -> float:
        seen.append(w.clone())
        return -loss(w)

    search.evolve(fitness)
    for i in range(6):
        assert torch.allclose(seen[1 + i], sample(anchor, 0.5, "normal", 5, i, 4))


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_resuming_gives_the_same_bits_as_never_stopping(stop: int) -> None:
    def fresh(values: Tensor) -> tuple[Tensor, Evolution]:
        w = values.clone()
        return w, Evolution({"w": w}, RandomSearch(0.4, population=4), seed=5)

    w, search = fresh(torch.tensor([1.0, -2.0, 0.1]))
    search.evolve(lambda: -loss(w), generations=stop)
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    v, resumed = fresh(w)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    search.evolve(lambda: -loss(w), generations=8)
    resumed.evolve(lambda: -loss(v), generations=8)
    assert torch.equal(w, v)
    assert search.history[stop:] != []
    mine = [record.scores for record in search.history[stop:]]
    assert mine == [record.scores for record in resumed.history]


def test_a_rejected_proposal_leaves_the_anchor() -> None:
    w = torch.tensor([1.0, -2.0])
    anchor = w.clone()
    strategy = RandomSearch(0.5, population=4, scale="absolute")
    search = Evolution({"w": w}, strategy, seed=4)
    calls: list[Tensor] = []

    def rising() -> float:
        calls.append(w.clone())
        return float(len(calls))

    search.evolve(rising)
    best = w.clone()
    assert torch.equal(best, calls[4])  # the last sample of the first generation
    for generation in (1, 2, 3):
        calls.clear()
        (record,) = search.evolve(rising, accept_on=lambda: 0.0)  # a tie: rejected
        assert record.candidate == 0.0
        assert torch.equal(w, best)
        for i in range(4):
            there = sample(anchor, 0.5, "normal", generation, i, 4)
            assert torch.allclose(calls[1 + i], there)


def test_nothing_is_proposed_where_nothing_is_better() -> None:
    w = torch.tensor([1.0, -2.0])
    search = Evolution({"w": w}, RandomSearch(0.5, population=4), accept=Always())
    search.evolve(lambda: 0.5, generations=2)
    assert w.tolist() == [1.0, -2.0]
    assert search.state_dict()["state"] == {}


def test_failed_samples_are_never_proposed() -> None:
    w = torch.tensor([1.0, -2.0])
    strategy = RandomSearch(0.5, population=3)
    search = Evolution({"w": w}, strategy, accept=Always())
    scores = iter([0.0, math.nan, math.inf, -1.0])
    (record,) = search.evolve(lambda: next(scores))
    assert record.failed == 2
    assert w.tolist() == [1.0, -2.0]


def test_a_group_with_sigma_zero_stays() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    from evostep import Evolved

    base = torch.optim.SGD([{"params": [a]}, {"params": [b], "sigma": 0.0}], lr=0.1)
    optimizer = Evolved(base, RandomSearch(0.5, population=4, scale="absolute"))
    optimizer.evolve(lambda: -loss(a) - loss(b), generations=20)
    assert a.tolist() != [1.0, 1.0]
    assert b.tolist() == [1.0, 1.0]


def test_copies_and_pickles_carry_no_weights() -> None:
    w = torch.tensor([1.0, -2.0])
    search = Evolution({"w": w}, RandomSearch(0.5, population=4))
    search.evolve(lambda: -loss(w), generations=4)
    strategy = search.strategy
    assert copy.deepcopy(strategy) == strategy
    assert len(pickle.dumps(strategy)) < 2000
    assert pickle.loads(pickle.dumps(strategy)) == strategy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"sigma": -1.0}, "sigma must be a finite number > 0, got -1.0"),
        ({"scale": "max"}, "scale must be one of rms, absolute, got 'max'"),
        ({"noise": "cauchy"}, "noise must be one of normal, uniform or LowRank"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomSearch(**{"sigma": 0.1, "population": 8, **settings})
