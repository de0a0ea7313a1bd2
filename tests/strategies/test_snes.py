"""SNES: a slow twin, another library's numbers, the laws of its update, and a budget."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evostep import Always, Evolution, Improves
from evostep.genome.point import Genome
from evostep.noise import LowRank, draw
from evostep.strategies import snes
from evostep.strategies.shaping import centered_rank, log_rank
from evostep.strategies.snes import SNES, default_lr_sigma

FIXTURES = Path(__file__).parent / "fixtures"


def genome_of(**center: Tensor) -> Genome:
    return Genome(center, dict.fromkeys(center))


# The utilities.


def utilities_by_hand(scores: list[float]) -> list[float]:
    """By sorting, one rank after the other; ties get the mean of what their ranks hold."""
    n = len(scores)
    raw = [max(0.0, math.log(n / 2 + 1) - math.log(k)) for k in range(1, n + 1)]
    by_rank = [value / sum(raw) - 1 / n for value in raw]
    key = [score if math.isfinite(score) else -math.inf for score in scores]
    order = sorted(range(n), key=lambda i: -key[i])
    shares = [[by_rank[rank] for rank, j in enumerate(order) if key[j] == key[i]] for i in range(n)]
    return [sum(share) / len(share) for share in shares]


SCORES = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.just(math.nan), st.just(math.inf)),
    min_size=1,
    max_size=12,
)


@given(SCORES)
def test_utilities_are_those_of_the_formula_and_ties_share_them(scores: list[float]) -> None:
    u = log_rank(scores)
    assert u.tolist() == pytest.approx(utilities_by_hand(scores), abs=1e-12)
    assert float(u.sum()) == pytest.approx(0, abs=1e-12)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12))
def test_utilities_do_not_change_under_monotone_transforms(scores: list[int]) -> None:
    there = log_rank([math.atan(score) ** 3 + 7 for score in scores])
    assert torch.equal(log_rank([float(score) for score in scores]), there)


@pytest.mark.parametrize("score", [0.5, math.nan])
def test_equal_scores_have_utilities_of_exactly_zero(score: float) -> None:
    assert log_rank([score] * 7).tolist() == [0.0] * 7


def test_ranks_are_those_of_another_library() -> None:
    for case in json.loads((FIXTURES / "centered_rank_evosax.json").read_text())["cases"]:
        expected = pytest.approx(case["utilities"], abs=1e-12)
        assert centered_rank(case["scores"]).tolist() == expected


# The update.


def test_numbers_are_those_of_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads((FIXTURES / "snes_evosax.json").read_text())
    order = list(range(len(told["weights"])))
    assert log_rank([-float(k) for k in order]).tolist() == pytest.approx(told["weights"])
    genome = genome_of(w=torch.tensor(told["start"], dtype=torch.float64))
    strategy = SNES(told["sigma"], population=9, scale="absolute")
    state = strategy.init(genome)
    for t, expected in enumerate(told["generations"]):
        noise = expected["noise"]

        def given_noise(*_: Any, member: int, noise: Any = noise, **__: Any) -> Tensor:
            return torch.tensor(noise[member], dtype=torch.float64)

        monkeypatch.setattr(snes, "draw", given_noise)
        step, state = strategy.tell(genome, state, t, expected["scores"], 0.0, seed=0)
        assert step is not None
        genome.move(step.center)
        assert genome.center["w"].tolist() == pytest.approx(expected["mean"], rel=1e-9)
        sigma = strategy.deviation(genome, state, "w")
        assert sigma.tolist() == pytest.approx(expected["std"], rel=1e-9)


class Twin:
    """SNES in NumPy, one coordinate at a time."""

    def __init__(self, sigma: float, population: int, scale: str) -> None:
        self.sigma, self.population, self.scale = sigma, population, scale
        self.factor: dict[str, Any] = {}

    def step(self, center: dict[str, Any], scored: Any, generation: int, seed: int) -> None:
        noise = {
            name: [
                draw(
                    "normal",
                    torch.empty(len(value), dtype=torch.float64),
                    seed=seed,
                    generation=generation,
                    member=i,
                    name=name,
                ).numpy()
                for i in range(self.population)
            ]
            for name, value in center.items()
        }
        spread = {}
        for name, value in center.items():
            unit = max(np.sqrt(np.mean(value**2)), 0.01) if self.scale == "rms" else 1.0
            factor = self.factor.setdefault(name, np.ones(len(value)))
            spread[name] = [self.sigma * unit * factor[j] for j in range(len(value))]
        members = [
            {n: center[n] + np.array(spread[n]) * noise[n][i] for n in center}
            for i in range(self.population)
        ]
        u = utilities_by_hand([scored(member) for member in members])
        d = sum(len(value) for value in center.values())
        rate = (3 + math.log(d)) / (5 * math.sqrt(d))
        for name, value in center.items():
            for j in range(len(value)):
                eps = [noise[name][i][j] for i in range(self.population)]
                value[j] += spread[name][j] * sum(a * e for a, e in zip(u, eps, strict=True))
                slope = sum(a * (e * e - 1) for a, e in zip(u, eps, strict=True))
                self.factor[name][j] *= math.exp(rate / 2 * slope)


@pytest.mark.parametrize("scale", ["rms", "absolute"])
def test_agrees_with_the_slow_twin_step_by_step(scale: Any) -> None:
    start = {"a": [1.0, -2.0, 0.5], "b": [0.0, 0.0]}
    weights = {name: torch.tensor(value, dtype=torch.float64) for name, value in start.items()}
    center = {name: np.array(value) for name, value in start.items()}
    twin = Twin(0.3, 7, scale)
    search = Evolution(weights, SNES(0.3, population=7, scale=scale), accept=Always(), seed=3)

    def scored(at: Any) -> float:
        return -float((at["a"] ** 2).sum() + 3 * ((at["b"] - 1) ** 2).sum() + at["a"][0])

    for generation in range(15):
        search.evolve(lambda: scored(weights))
        twin.step(center, scored, generation, seed=3)
        for name, value in center.items():
            assert weights[name].tolist() == pytest.approx(value.tolist(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_the_expected_step_follows_the_gradient_of_a_quadratic(sigma: float) -> None:
    """With equal sigmas the mean of the steps is along the gradient (a sphere, by symmetry)."""
    strategy = SNES(sigma, population=10, scale="absolute")
    genome = genome_of(w=torch.tensor([1.0, -0.5, 0.25, 0.0], dtype=torch.float64))
    state, center = strategy.init(genome), genome.center["w"]
    total = torch.zeros_like(center)
    for generation in range(100):
        members = [strategy.member(genome, state, generation, i, 0) for i in range(10)]
        scores = [-float(member.tensor("w").square().sum()) for member in members]
        step, _ = strategy.tell(genome, state, generation, scores, 0.0, seed=0)
        assert step is not None
        total += step.center.tensor("w") - center
    assert float(torch.cosine_similarity(total, -center, dim=0)) > 0.99


def test_sigma_grows_along_what_matters_little_and_shrinks_across() -> None:
    w = torch.tensor([1.0, 1.0], dtype=torch.float64)
    search = Evolution({"w": w}, SNES(0.1, population=12, scale="absolute"), accept=Always())
    search.evolve(lambda: float(w[0] - 1e4 * w[1] ** 2), generations=100)
    grown, shrunk = search.state_dict()["state"]["log_sigma"]["w"].tolist()
    assert grown > 1 > -1 > shrunk


def test_equal_scores_move_and_teach_nothing() -> None:
    strategy, genome = SNES(0.1, population=4), genome_of(w=torch.ones(3))
    state = strategy.init(genome)
    for scores in ([0.5] * 4, [math.nan] * 4):
        step, after = strategy.tell(genome, state, 0, scores, 0.0, seed=0)
        assert step is None
        assert after["log_sigma"]["w"].tolist() == [0.0] * 3


def test_learned_sigmas_stay_after_a_rejection_and_the_center_goes_back() -> None:
    w = torch.tensor([1.0, 2.0])
    search = Evolution({"w": w}, SNES(0.1, population=6), accept=Improves())
    calls = iter(range(100))
    (record,) = search.evolve(lambda: -float(next(calls)))  # the candidate, scored last, is worst
    assert not record.accepted
    assert w.tolist() == [1.0, 2.0]
    assert search.state_dict()["state"]["log_sigma"]["w"].abs().min() > 0


def test_resuming_gives_the_same_bits_as_never_stopping() -> None:
    def fresh(values: list[float]) -> tuple[Tensor, Evolution]:
        w = torch.tensor(values)
        return w, Evolution({"w": w}, SNES(0.3, population=6), accept=Always(), seed=5)

    w, search = fresh([1.0, -2.0, 0.1])
    search.evolve(lambda: -float(w.square().sum()), generations=4)
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    v, resumed = fresh(w.tolist())
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    search.evolve(lambda: -float(w.square().sum()), generations=6)
    resumed.evolve(lambda: -float(v.square().sum()), generations=6)
    assert torch.equal(w, v)
    mine, its = (e.state_dict()["state"]["log_sigma"]["w"] for e in (search, resumed))
    assert torch.equal(mine, its)


def test_telling_leaves_the_state_that_it_was_given() -> None:
    strategy, genome = SNES(0.1, population=3), genome_of(w=torch.ones(3))
    state = strategy.init(genome)
    strategy.tell(genome, state, 0, [1.0, 2.0, 3.0], 0.0, seed=0)
    assert state["log_sigma"]["w"].tolist() == [0.0] * 3


def test_a_group_with_sigma_zero_neither_moves_nor_counts() -> None:
    strategy = SNES(0.1, population=3, scale="absolute")
    genome = Genome({"a": torch.ones(4), "b": torch.ones(2)}, {"a": None, "b": 0.0})
    alone = genome_of(a=torch.ones(4))
    state = strategy.init(genome)
    assert strategy.member(genome, state, 0, 1, 0).tensor("b") is genome.center["b"]
    step, told = strategy.tell(genome, state, 0, [1.0, 2.0, 3.0], 0.0, seed=0)
    step_alone, told_alone = strategy.tell(
        alone, strategy.init(alone), 0, [1.0, 2.0, 3.0], 0.0, seed=0
    )
    assert step is not None
    assert step_alone is not None
    assert step.center.tensor("b").tolist() == [1.0, 1.0]
    assert torch.equal(step.center.tensor("a"), step_alone.center.tensor("a"))
    assert torch.equal(told["log_sigma"]["a"], told_alone["log_sigma"]["a"])
    assert "b" not in told["log_sigma"]


def test_a_groups_sigma_replaces_the_strategys_and_keeps_what_was_learned() -> None:
    strategy = SNES(0.1, population=3, scale="absolute")
    state = {"log_sigma": {"w": torch.tensor([0.0, 1.0])}}
    genome = Genome({"w": torch.ones(2)}, {"w": 0.5})
    assert strategy.deviation(genome, state, "w").tolist() == pytest.approx([0.5, 0.5 * math.e])


def test_reaches_1e_6_on_the_sphere_within_its_budget() -> None:
    """About 1,230 evaluations (5 seeds: 1,180 to 1,290); 1.3 times as many are granted."""
    w = torch.ones(10, dtype=torch.float64)
    strategy = SNES(0.3, population=10, scale="absolute")
    search = Evolution({"w": w}, strategy, accept=Always())
    search.evolve(
        lambda: -float(w.square().sum()),
        generations=160,
        on_generation=lambda record: float(w.square().sum()) < 1e-6,
    )
    assert float(w.square().sum()) < 1e-6
    assert 10 * search.generation <= 1.3 * 1230


def test_the_default_rate_is_the_papers() -> None:
    assert default_lr_sigma(100) == pytest.approx((3 + math.log(100)) / 50)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"lr_center": 0.0}, "lr_center must be a finite number > 0, got 0.0"),
        ({"lr_sigma": -1.0}, "lr_sigma must be a finite number > 0, got -1.0"),
        ({"sigma": 0.0}, "sigma must be a finite number > 0, got 0.0"),
        ({"noise": "uniform"}, "noise must be 'normal', got 'uniform'"),
        ({"noise": LowRank(1)}, "noise must be 'normal', got LowRank"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SNES(**{"sigma": 0.1, "population": 8, **settings})
