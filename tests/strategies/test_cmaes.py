"""CMAES: the package itself as the twin, its numbers as data, replay to the bit, and budgets."""

import copy
import io
import json
import math
import pickle
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evostep import Always, Evolution, Improves
from evostep.genome.point import Genome
from evostep.noise import LowRank, draw
from evostep.strategies import cmaes
from evostep.strategies.cmaes import CMAES

FIXTURES = Path(__file__).parent / "fixtures"


def evolution(w: Tensor, *, accept: Any = None, seed: int = 0, **settings: Any) -> Evolution:
    settings = {"sigma": 0.5, "population": 6, "scale": "absolute", **settings}
    return Evolution({"w": w}, CMAES(**settings), accept=accept or Always(), seed=seed)


def ellipsoid(w: Tensor) -> float:
    return float((w.double().square() * 10.0 ** torch.arange(len(w))).sum())


def test_agrees_with_the_package_itself_step_by_step() -> None:
    """Both get the same normal numbers: first tensor a, then b, member after member."""
    import cma

    start = {"a": [1.0, -2.0], "b": [0.5]}
    weights = {name: torch.tensor(value, dtype=torch.float64) for name, value in start.items()}
    strategy = CMAES(0.3, population=7, scale="rms")
    search = Evolution(weights, strategy, accept=Always(), seed=3)
    generation = 0

    def randn(n: int, d: int) -> Any:
        rows = [
            torch.cat(
                [
                    draw("normal", t, seed=3, generation=generation, member=i, name=name)
                    for name, t in weights.items()
                ]
            )
            for i in range(n)
        ]
        assert (n, d) == (7, 3)
        return torch.stack(rows).numpy()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"popsize": 7, "seed": math.nan, "randn": randn, "verbose": -9}
        twin = cma.CMAEvolutionStrategy(3 * [0.0], 1.0, options)
    spread = np.array([0.3 * math.sqrt(2.5)] * 2 + [0.3 * 0.5])
    origin = np.array([1.0, -2.0, 0.5])
    for generation in range(25):  # noqa: B007 (randn reads it)
        search.evolve(lambda: -ellipsoid(torch.cat([weights["a"], weights["b"]])))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = twin.ask()
            twin.tell(drawn, [ellipsoid(torch.tensor(origin + spread * z)) for z in drawn])
        now = torch.cat([weights["a"], weights["b"]])
        assert now.tolist() == pytest.approx((origin + spread * twin.mean).tolist(), abs=1e-12)


def test_numbers_are_those_that_the_package_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads((FIXTURES / "cmaes_pycma.json").read_text())
    w = torch.tensor(told["start"], dtype=torch.float64)
    noise = [generation["noise"] for generation in told["generations"]]

    def given_noise(*_: Any, generation: int, member: int, **__: Any) -> Tensor:
        return torch.tensor(noise[generation][member], dtype=torch.float64)

    monkeypatch.setattr(cmaes, "draw", given_noise)
    search = evolution(w, population=8, sigma=told["sigma"])
    for expected in told["generations"]:
        (record,) = search.evolve(lambda: -ellipsoid(w))
        assert record.scores == pytest.approx(expected["scores"], rel=1e-6)
        assert w.tolist() == pytest.approx(expected["mean"], rel=1e-6)


def rosenbrock(w: Tensor) -> float:
    return float((100 * (w[1:] - w[:-1].square()).square() + (1 - w[:-1]).square()).sum())


@pytest.mark.parametrize(
    ("loss", "start", "target", "usual", "seeds"),
    [
        # cma 4.5.0 alone, 5 seeds: 910 to 1,030, and 3,840 to 5,120
        pytest.param(lambda w: float(w.square().sum()), 1.0, 1e-6, 980, 1, id="sphere"),
        pytest.param(rosenbrock, 0.0, 1e-3, 4500, 1, id="rosenbrock", marks=pytest.mark.slow),
    ],
)
def test_reaches_the_target_within_its_budget(
    loss: Any, start: float, target: float, usual: int, seeds: int
) -> None:
    needed = []
    for seed in range(seeds):
        w = torch.full((10,), start, dtype=torch.float64)
        search = evolution(w, sigma=0.3, population=10, seed=seed)
        search.evolve(
            lambda w=w: -loss(w),
            generations=2 * usual // 10,
            on_generation=lambda record, w=w: loss(w) < target,
        )
        needed.append(10 * search.generation)
    assert sorted(needed)[len(needed) // 2] <= 1.4 * usual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [Always(), Improves()], ids=["always", "improves"])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resuming_gives_the_same_bits_as_never_stopping(
    stop: int, rule: Any, dtype: torch.dtype
) -> None:
    """Rejections, a generation without a difference and a failed member are in the log, too."""

    def play(w: Tensor, search: Evolution, generations: int) -> None:
        for _ in range(generations):
            count = 0

            def fitness() -> float:
                nonlocal count
                count += 1
                if search.generation in (3, 9):
                    return 1.0
                if search.generation == 5 and count == 4:
                    return math.nan
                return -ellipsoid(w)

            search.evolve(fitness)

    w = torch.tensor([1.0, -2.0, 0.1, 0.0], dtype=dtype)
    search = evolution(w, accept=rule, seed=5)
    play(w, search, stop)
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    v = w.clone()
    resumed = evolution(v, accept=rule, seed=5)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    play(w, search, 8)
    play(v, resumed, 8)
    assert torch.equal(w, v)
    mine = torch.tensor([record.scores for record in search.history[stop:]])
    its = torch.tensor([record.scores for record in resumed.history])
    assert torch.equal(mine.nan_to_num(), its.nan_to_num())
    if rule == Improves() and stop == 7:
        assert {record.accepted for record in search.history} == {True, False}


def test_after_a_rejection_the_mean_goes_back_and_what_was_learned_stays() -> None:
    """The twin's mean is put back by hand; members show its covariance and its step size."""
    import cma

    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    w, generation = start.clone(), 0
    search = evolution(w, accept=Improves(), seed=2)

    def randn(n: int, d: int) -> Any:
        rows = [
            draw("normal", w, seed=2, generation=generation, member=i, name="w") for i in range(n)
        ]
        return torch.stack(rows).numpy()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"popsize": 6, "seed": math.nan, "randn": randn, "verbose": -9}
        twin = cma.CMAEvolutionStrategy(2 * [0.0], 1.0, options)
    seen: list[Tensor] = []

    def fitness() -> float:
        seen.append(w.clone())
        return -ellipsoid(w)

    for generation in range(5):
        seen.clear()
        center, mean = w.clone(), twin.mean.copy()
        judged = iter([0.0, 1.0 if generation < 2 else 0.0])  # parent and candidate
        search.evolve(fitness, accept_on=lambda judged=judged: next(judged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = twin.ask()
            twin.tell(drawn, [ellipsoid(start + 0.5 * torch.tensor(z)) for z in drawn])
        if generation >= 2:  # a tie: rejected
            twin.mean = mean
            assert torch.equal(w, center)
        for i in range(6):
            expected = start + 0.5 * torch.tensor(drawn[i])
            assert torch.allclose(seen[1 + i], expected, rtol=0, atol=1e-12)
    assert search.state_dict()["state"]["back"] == [0, 0, 0, 1, 1]


def test_a_phase_that_is_rejected_goes_back_to_the_start_of_the_search() -> None:
    w = torch.tensor([1.0, -2.0])
    search = evolution(w, seed=2)
    search.evolve(lambda: -ellipsoid(w), generations=4)
    with torch.no_grad():
        w.copy_(torch.tensor([1.0, -2.0]))
    search.evolve(lambda: -ellipsoid(w))
    assert search.state_dict()["state"]["back"] == [0, 0, 0, 0, 2]


def test_going_back_after_a_generation_without_a_difference_gives_the_replayed_bits() -> None:
    """That generation drew from the mean that is then given up."""
    start = torch.tensor([1.0, -2.0])
    ends = []
    for reloaded in (False, True):
        w = start.clone()
        search = evolution(w, seed=2)
        search.evolve(lambda w=w: -ellipsoid(w), generations=4)
        before = w.clone()
        search.evolve(lambda w=w: -ellipsoid(w))
        search.evolve(lambda: 0.5)
        with torch.no_grad():
            w.copy_(before)  # as a rule that judges phases does
        if reloaded:
            saved = search.state_dict()
            search = evolution(w, seed=2)
            search.load_state_dict(saved)
        search.evolve(lambda w=w: -ellipsoid(w), generations=2)
        assert search.state_dict()["state"]["back"] == [0, 0, 0, 0, 0, 1, 0]
        ends.append(w)
    assert torch.equal(*ends)


def test_a_move_by_something_else_begins_a_new_search() -> None:
    w = torch.tensor([1.0, -2.0])
    search = evolution(w, seed=2)
    search.evolve(lambda: -ellipsoid(w), generations=4)
    with torch.no_grad():
        w.sub_(0.25)  # a gradient step, say
    there = w.clone()
    search.evolve(lambda: -ellipsoid(w))
    state = search.state_dict()["state"]
    assert state["generations"] == [4]
    assert torch.equal(state["start"]["w"], there)


def test_another_sigma_or_population_begins_a_new_search() -> None:
    w = torch.tensor([1.0, -2.0])
    search = evolution(w, seed=2)
    search.evolve(lambda: -ellipsoid(w), generations=4)
    saved = search.state_dict()
    for change in ({"sigma": 0.1}, {"population": 9}, {"scale": "rms"}):
        v = w.clone()
        other = evolution(v, seed=2, **change)
        other.load_state_dict(saved)
        other.evolve(lambda v=v: -ellipsoid(v))
        assert other.state_dict()["state"]["generations"] == [4]


def test_a_member_is_a_function_of_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was asked before, and by a strategy that was never asked."""
    strategy = CMAES(0.3, population=4, scale="absolute")
    genome = Genome({"w": torch.tensor([1.0, 2.0, 3.0])}, {"w": None})
    state: dict[str, Any] = strategy.init(genome)
    steps = []
    for generation in range(3):
        members = [strategy.member(genome, state, generation, i, 7) for i in range(4)]
        scores = [-ellipsoid(member.tensor("w")) for member in members]
        before = state
        step, state = strategy.tell(genome, state, generation, scores, 0.0, seed=7)
        assert step is not None
        again, _ = CMAES(0.3, population=4, scale="absolute").tell(
            genome, before, generation, scores, 0.0, seed=7
        )
        assert again is not None
        assert torch.equal(step.center.tensor("w"), again.center.tensor("w"))
        twice, _ = strategy.tell(genome, before, generation, scores, 0.0, seed=7)
        assert twice is not None
        assert torch.equal(step.center.tensor("w"), twice.center.tensor("w"))
        steps.append(step)
        genome.move(step.center)
    one = strategy.member(genome, state, 3, 2, 7).tensor("w")
    strategy.member(genome, state, 4, 0, 7)
    assert torch.equal(one, strategy.member(genome, state, 3, 2, 7).tensor("w"))
    assert not torch.equal(one, strategy.member(genome, state, 4, 2, 7).tensor("w"))
    assert not torch.equal(one, strategy.member(genome, state, 3, 2, 8).tensor("w"))


def test_two_runs_may_share_one_strategy() -> None:
    strategy = CMAES(0.5, population=6, scale="absolute")
    ends = []
    for shared in (True, False):
        pair = [torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])]
        own = CMAES(0.5, population=6, scale="absolute")
        searches = [
            Evolution({"w": w}, strategy if shared else copy.deepcopy(own), accept=Always())
            for w in pair
        ]
        for _ in range(4):
            for w, search in zip(pair, searches, strict=True):
                search.evolve(lambda w=w: -ellipsoid(w))
        ends.append(pair)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("score", [0.5, math.nan])
def test_equal_scores_move_and_teach_nothing(score: float) -> None:
    strategy = CMAES(0.3, population=4)
    genome = Genome({"w": torch.ones(3)}, {"w": None})
    assert strategy.tell(genome, {}, 0, [score] * 4, 0.0, seed=0) == (None, {})


def test_a_failed_member_ranks_last() -> None:
    genome = Genome({"w": torch.ones(3)}, {"w": None})
    proposals = []
    for bad in (math.nan, math.inf, -1e9):
        step, _ = CMAES(0.3, population=4).tell(genome, {}, 0, [1.0, bad, 3.0, 2.0], 0.0, seed=0)
        assert step is not None
        proposals.append(step.center.tensor("w"))
    assert torch.equal(proposals[0], proposals[2])
    assert torch.equal(proposals[1], proposals[2])


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_the_expected_step_follows_the_gradient_of_a_quadratic(sigma: float) -> None:
    total = torch.zeros(3, dtype=torch.float64)
    start = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    for seed in range(40):
        w = start.clone()
        evolution(w, sigma=sigma, seed=seed).evolve(lambda w=w: -float(w.square().sum()))
        total += w - start
    assert float(torch.cosine_similarity(total, -start, dim=0)) > 0.97


def test_random_streams_and_filters_of_warnings_are_left_alone() -> None:
    numpy, python, own = np.random.get_state()[1], random.getstate(), torch.get_rng_state()
    filters = list(warnings.filters)
    genome = Genome({"w": torch.ones(3)}, {"w": None})
    strategy = CMAES(0.3, population=4)
    strategy.init(genome)
    strategy.tell(genome, {}, 0, [1.0, 2.0, 3.0, 4.0], 0.0, seed=0)
    assert np.array_equal(numpy, np.random.get_state()[1])  # type: ignore[arg-type]
    assert python == random.getstate()
    assert torch.equal(own, torch.get_rng_state())
    assert filters == list(warnings.filters)


def test_a_group_with_sigma_zero_stays() -> None:
    strategy = CMAES(0.3, population=4, scale="absolute")
    genome = Genome({"a": torch.ones(2), "b": torch.ones(5000)}, {"a": 0.5, "b": 0.0})
    state = strategy.init(genome)  # the 5,000 do not count
    assert strategy.member(genome, state, 0, 0, 0).tensor("b") is genome.center["b"]
    step, _ = strategy.tell(genome, state, 0, [1.0, 2.0, 3.0, 4.0], 0.0, seed=0)
    assert step is not None
    assert step.center.tensor("b") is genome.center["b"]
    assert step.center.tensor("a").tolist() != [1.0, 1.0]


def test_the_default_population_depends_on_the_coordinates() -> None:
    strategy = CMAES(0.3)
    assert strategy.size_for(Genome({"w": torch.ones(10)}, {"w": None})) == 10
    with pytest.raises(ValueError, match="pass a population"):
        _ = strategy.size


def test_too_many_coordinates_are_refused_before_anything_moves() -> None:
    w = torch.ones(50, 41)
    search = evolution(w)
    with pytest.raises(ValueError, match=r"at most 2,000 coordinates, got 2,050: take a smaller"):
        search.evolve(lambda: 0.0)
    assert bool((w == 1).all())


def test_nothing_to_move_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to move"):
        CMAES(0.3).init(Genome({"w": torch.ones(3)}, {"w": 0.0}))


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(ValueError, match=r"pip install 'evostep\[cma\]'"):
        CMAES(0.3).init(Genome({"w": torch.ones(3)}, {"w": None}))


def test_copies_and_pickles_carry_no_search() -> None:
    w = torch.tensor([1.0, -2.0])
    search = evolution(w)
    search.evolve(lambda: -ellipsoid(w))
    strategy = search.strategy
    assert copy.deepcopy(strategy) == strategy
    assert len(pickle.dumps(strategy)) < 2000
    assert pickle.loads(pickle.dumps(strategy)) == strategy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 2}, "population must be at least 3, or None, got 2"),
        ({"sigma": 0.0}, "sigma must be a finite number > 0, got 0.0"),
        ({"noise": "uniform"}, "noise must be 'normal', got 'uniform'"),
        ({"noise": LowRank(1)}, "noise must be 'normal', got LowRank"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CMAES(**{"sigma": 0.1, **settings})
