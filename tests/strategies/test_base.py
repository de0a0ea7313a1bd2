"""Strategies: one table drives the shared tests; each also stands beside a slow, obvious twin.

A new strategy joins by a line in STRATEGIES (and in REFUSED).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from evostep import Always, Evolution, Improves, OpenAIES, RandomMutation
from evostep.genome.point import Genome
from evostep.noise import draw
from evostep.strategies.base import NoiseStrategy, Step, Strategy

# Each on a parabola, in units of the weights, with a sigma and a step that suit it.
STRATEGIES: dict[str, NoiseStrategy] = {
    "mutation": RandomMutation(0.1, population=8, scale="absolute"),
    "mutation, uniform": RandomMutation(0.2, population=8, scale="absolute", noise="uniform"),
    "mutation, one child": RandomMutation(0.1, population=1, scale="absolute"),
    "openai-es": OpenAIES(0.1, lr=0.05, population=16, scale="absolute"),
    "openai-es, z-score": OpenAIES(0.1, 0.02, 16, shaping="z-score", scale="absolute"),
    "openai-es, not antithetic": OpenAIES(0.1, 0.05, 16, antithetic=False, scale="absolute"),
    "openai-es, uniform": OpenAIES(0.1, 0.05, 16, scale="absolute", noise="uniform"),
    "openai-es, article": OpenAIES(0.1, 0.02, 15, False, "z-score", scale="absolute"),
}
each = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def genome(dtype: torch.dtype = torch.float64, **sigma: float | None) -> Genome:
    center = {
        "w": torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]], dtype=dtype),
        "b": torch.tensor([0.5, -0.5, 0.25], dtype=dtype),
    }
    return Genome(center, {"w": None, "b": None, **sigma})


def members(strategy: Strategy, g: Genome, generation: int = 0, seed: int = 0) -> list[Any]:
    state = strategy.init(g)
    return [strategy.member(g, state, generation, i, seed) for i in range(strategy.size)]


def told(
    strategy: Strategy, g: Genome, scores: list[float], parent: float = 0.0, generation: int = 0
) -> Step | None:
    return strategy.tell(g, strategy.init(g), generation, scores, parent, seed=0)[0]


def parabola(coordinates: Any) -> float:
    return -sum(float(coordinates.tensor(name).double().square().sum()) for name in ("w", "b"))


# Laws that hold for each


@each
def test_members_are_pure_recipes(strategy: NoiseStrategy) -> None:
    g = genome()
    forward = [m.tensor("w") for m in members(strategy, g)]
    torch.rand(5)
    backward = [m.tensor("w") for m in reversed(members(strategy, g))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))


@each
def test_members_differ_from_each_other_and_between_generations_and_seeds(
    strategy: NoiseStrategy,
) -> None:
    g = genome()
    drawn = [
        tuple(m.tensor("w").flatten().tolist())
        for generation, seed in ((0, 0), (1, 0), (0, 1))
        for m in members(strategy, g, generation, seed)
    ]
    assert len(set(drawn)) == 3 * strategy.size


@each
def test_neither_members_nor_steps_touch_the_center(strategy: NoiseStrategy) -> None:
    g = genome()
    before = {name: tensor.clone() for name, tensor in g.center.items()}
    population = members(strategy, g)
    step = told(strategy, g, [parabola(m) for m in population], math.inf)
    for coordinates in (*population, *([step.center] if step else [])):
        coordinates.tensor("w"), coordinates.tensor("b")
    assert all(torch.equal(g.center[name], before[name]) for name in before)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types_are_kept(strategy: NoiseStrategy, dtype: torch.dtype) -> None:
    g = genome(dtype)
    population = members(strategy, g)
    step = told(strategy, g, [parabola(m) for m in population])
    assert step is not None
    for coordinates in (population[0], step.center):
        assert coordinates.tensor("w").shape == (2, 3)
        assert coordinates.tensor("w").dtype == dtype


@each
def test_a_tensor_of_sigma_zero_stays(strategy: NoiseStrategy) -> None:
    g = genome(b=0.0)
    population = members(strategy, g)
    step = told(strategy, g, [parabola(m) for m in population])
    assert step is not None
    for coordinates in (*population, step.center):
        assert torch.equal(coordinates.tensor("b"), g.center["b"])
        assert not torch.equal(coordinates.tensor("w"), g.center["w"])


@each
def test_a_tensors_own_sigma_replaces_the_strategys(strategy: NoiseStrategy) -> None:
    own, plain = genome(w=3 * strategy.sigma), genome()
    for a, b in zip(members(strategy, own), members(strategy, plain), strict=True):
        torch.testing.assert_close(
            a.tensor("w") - own.center["w"], 3 * (b.tensor("w") - plain.center["w"])
        )
        assert torch.equal(a.tensor("b"), b.tensor("b"))


@each
def test_the_spread_of_members_is_sigma(strategy: NoiseStrategy) -> None:
    center = {"w": torch.full((4000,), 2.0, dtype=torch.float64)}
    width = 3**-0.5 if strategy.noise == "uniform" else 1.0
    for scale, unit in (("absolute", 1.0), ("rms", 2.0)):
        scaled = replace(strategy, scale=scale)  # type: ignore[arg-type]
        g = Genome(center, {"w": None})
        x = torch.cat([m.tensor("w") - 2.0 for m in members(scaled, g)[::2]])
        assert float(x.std()) == pytest.approx(strategy.sigma * unit * width, rel=0.08)


@each
def test_relative_sigma_is_equivariant_to_the_scale_of_the_weights(strategy: NoiseStrategy) -> None:
    relative = replace(strategy, scale="rms")
    small, large = genome(), genome()
    for tensor in large.center.values():
        tensor.mul_(8)
    for a, b in zip(members(relative, small), members(relative, large), strict=True):
        torch.testing.assert_close(8 * a.tensor("w"), b.tensor("w"))
    scores = [float(i) for i in range(strategy.size)]
    a, b = told(relative, small, scores), told(relative, large, scores)
    if strategy.size > 1:
        assert a is not None
        assert b is not None
        torch.testing.assert_close(8 * a.center.tensor("w"), b.center.tensor("w"))


@each
def test_relative_sigma_moves_what_is_all_zero(strategy: NoiseStrategy) -> None:
    relative = replace(strategy, scale="rms")
    g = Genome({"b": torch.zeros(50)}, {"b": None})
    for member in members(relative, g):
        assert bool((member.tensor("b") != 0).all())
        assert 0 < float(member.tensor("b").abs().max()) < 0.01 * strategy.sigma * 6
    step = told(relative, g, [float(i) for i in range(strategy.size)])
    assert step is not None
    assert bool((step.center.tensor("b") != 0).all())


@each
def test_failed_members_never_make_the_step_infinite(strategy: NoiseStrategy) -> None:
    g = genome()
    for broken in (math.nan, math.inf, -math.inf):
        scores = [float(i) for i in range(strategy.size)]
        scores[0] = broken
        step = told(strategy, g, scores)
        if step is not None:
            assert bool(step.center.tensor("w").isfinite().all())
            assert step.scored != 0
        assert told(strategy, g, [broken] * strategy.size) is None


@pytest.mark.parametrize(
    "strategy",
    [s for s in STRATEGIES.values() if getattr(s, "shaping", None) != "z-score"],
)
def test_a_transform_that_keeps_the_order_keeps_what_only_ranks_matter_to(
    strategy: NoiseStrategy,
) -> None:
    g = genome()
    scores = [parabola(m) for m in members(strategy, g)]
    a, b = told(strategy, g, scores), told(strategy, g, [math.exp(s) for s in scores])
    assert a is not None
    assert b is not None
    assert torch.equal(a.center.tensor("w"), b.center.tensor("w"))


@pytest.mark.parametrize(
    ("name", "accept"),
    [
        (name, accept)
        for name in STRATEGIES
        for accept in (Improves(), Always())
        if (name, accept) != ("mutation, one child", Always())  # (1, 1) is a random walk
    ],
)
def test_each_converges_on_a_parabola(name: str, accept: Any) -> None:
    strategy = STRATEGIES[name]
    w = torch.tensor([1.0, -1.0, 0.5, -0.5])
    start = float(w.square().sum())
    search = Evolution({"w": w}, strategy, accept=accept)
    budget = (1000 if strategy.size == 1 else 2000) // strategy.size  # evaluations
    search.evolve(
        lambda: -float(w.square().sum()),
        generations=budget,
        on_generation=lambda record: float(w.square().sum()) < 0.05 * start,
    )
    assert float(w.square().sum()) < 0.05 * start


@each
def test_configuration_is_frozen_and_a_value(strategy: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        strategy.sigma = 1.0
    assert replace(strategy) == strategy
    assert hash(replace(strategy)) == hash(strategy)
    names = [f.name for f in fields(strategy)]
    assert names[0] == "sigma"


@each
def test_the_state_before_the_first_generation_is_plain(strategy: NoiseStrategy) -> None:
    assert strategy.init(genome()) == {}


# Random mutation


def test_mutation_proposes_its_best_child() -> None:
    strategy, g = RandomMutation(0.1, population=5), genome()
    population = members(strategy, g)
    step = told(strategy, g, [0.1, 0.5, math.nan, 0.5, -1.0], parent=0.9)
    assert step is not None
    assert step.scored == 1  # the first among equals
    assert torch.equal(step.center.tensor("w"), population[1].tensor("w"))


def test_one_plus_lambda_equals_its_twin() -> None:
    """Numbers, not tensors: the loop as it would be written on paper."""
    sigma, population, target = 0.3, 6, np.array([1.0, -1.0, 2.0])
    w = torch.zeros(3, dtype=torch.float64)
    strategy = RandomMutation(sigma, population, scale="absolute")
    search = Evolution({"w": w}, strategy, seed=11)
    f = lambda x: -float(((x - target) ** 2).sum())  # noqa: E731
    records = search.evolve(lambda: f(w.numpy()), generations=25)

    x, accepted = np.zeros(3), []
    for g in range(25):
        eps = [
            draw("normal", w, seed=11, generation=g, member=i, name="w").numpy()
            for i in range(population)
        ]
        scores = [f(x + sigma * e) for e in eps]
        best = int(np.argmax(scores))
        accepted.append(scores[best] > f(x))
        if accepted[-1]:
            x = x + sigma * eps[best]
    np.testing.assert_allclose(w.numpy(), x, rtol=1e-12)
    assert [record.accepted for record in records] == accepted
    assert 3 < sum(accepted) < 25  # both happened


def test_the_parents_score_never_falls_where_only_improvements_are_accepted() -> None:
    w = torch.tensor([2.0, -1.0])
    search = Evolution({"w": w}, RandomMutation(0.5, population=3, scale="absolute"))
    records = search.evolve(lambda: -float(w.square().sum()), generations=40)
    parents = [record.parent for record in records]
    assert parents == sorted(parents)
    for record, after in pairwise(records):
        assert (after.parent > record.parent) == record.accepted
        if record.accepted:
            assert after.parent == record.candidate == max(record.scores)


def test_comma_selection_leaves_a_parent_that_no_child_beats() -> None:
    w = torch.zeros(2)  # stands on the top: each child is worse
    strategy = RandomMutation(0.5, population=4, scale="absolute")
    record = Evolution({"w": w}, strategy, accept=Always()).evolve(lambda: -float(w.norm()))[0]
    assert record.accepted
    assert max(record.scores) < record.parent
    assert -float(w.norm()) == pytest.approx(max(record.scores))
    stay = torch.zeros(2)
    record = Evolution({"w": stay}, strategy).evolve(lambda: -float(stay.norm()))[0]
    assert not record.accepted
    assert torch.equal(stay, torch.zeros(2))


def test_a_tie_keeps_the_parent() -> None:
    w = torch.tensor([1.0, 2.0])
    search = Evolution({"w": w}, RandomMutation(0.5, population=4))
    records = search.evolve(lambda: 0.75, generations=3)
    assert not any(record.accepted for record in records)
    assert w.tolist() == [1.0, 2.0]


# OpenAI-ES


def article_twin(
    w: np.ndarray, f: Callable[[np.ndarray], float], sigma: float, lr: float, eps: list[np.ndarray]
) -> np.ndarray:
    """The article's formula, as it stands there."""
    n = len(eps)
    reward = np.array([f(w + sigma * eps[i]) for i in range(n)])
    r = (reward - reward.mean()) / reward.std()
    total = np.zeros_like(w)
    for i in range(n):
        total += r[i] * eps[i]
    return w + lr / (n * sigma) * total


def antithetic_twin(
    w: np.ndarray, f: Callable[[np.ndarray], float], sigma: float, lr: float, eps: list[np.ndarray]
) -> np.ndarray:
    """Salimans et al. with mirrored sampling and centred ranks over all 2n returns."""
    returns = np.array([[f(w + sigma * e), f(w - sigma * e)] for e in eps])
    rank = rankdata(returns, method="average").reshape(returns.shape) - 1
    u = rank / (returns.size - 1) - 0.5
    g = sum((u[i, 0] - u[i, 1]) * eps[i] for i in range(len(eps)))
    return w + lr / (returns.size * sigma) * np.asarray(g)


TWINS: dict[str, tuple[OpenAIES, Callable[..., np.ndarray]]] = {
    "article": (
        OpenAIES(0.05, 0.02, 9, antithetic=False, shaping="z-score", scale="absolute"),
        article_twin,
    ),
    "article, uniform": (
        OpenAIES(0.05, 0.02, 9, False, "z-score", scale="absolute", noise="uniform"),
        article_twin,
    ),
    "antithetic ranks": (OpenAIES(0.05, 0.02, 10, scale="absolute"), antithetic_twin),
}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("tied", [False, True])
def test_openai_es_equals_its_twin(name: str, tied: bool) -> None:
    es, twin = TWINS[name]
    target = np.linspace(-1, 1, 7)

    def f(x: np.ndarray) -> float:
        value = -float(((x - target) ** 2).sum())
        return round(value, 1) if tied else value  # as accuracies tie

    w = torch.zeros(7, dtype=torch.float64)
    search = Evolution({"layer.weight": w}, es, accept=Always(), seed=3)
    x = np.zeros(7)
    moved = 0.0
    for g in range(12):
        search.evolve(lambda: f(w.numpy()))
        directions = es.population // (2 if es.antithetic else 1)
        eps = [
            draw(es.noise, w, seed=3, generation=g, member=i, name="layer.weight").numpy()
            for i in range(directions)
        ]
        signs = (1, -1) if es.antithetic else (1,)
        reward = [f(x + sign * es.sigma * e) for e in eps for sign in signs]
        before = x
        x = twin(x, f, es.sigma, es.lr, eps) if len(set(reward)) > 1 else x
        moved += float(np.abs(x - before).sum())
        np.testing.assert_allclose(w.numpy(), x, rtol=1e-9, atol=1e-12)
    assert moved > 0.1


def test_the_step_is_in_units_of_the_root_mean_square() -> None:
    """Dividing the weights by it and evolving with absolute sigma is the same thing."""
    es = OpenAIES(0.05, 0.02, 10)
    w = torch.tensor([3.0, -4.0, 5.0], dtype=torch.float64)
    unit = float(w.square().mean().sqrt())
    v = w / unit
    Evolution({"w": w}, es, accept=Always()).evolve(lambda: -float((w / unit).square().sum()))
    Evolution({"w": v}, replace(es, scale="absolute"), accept=Always()).evolve(
        lambda: -float(v.square().sum())
    )
    torch.testing.assert_close(w, unit * v)


@pytest.mark.parametrize(
    "sigma", [0.1, 3.0, *(pytest.param(sigma, marks=pytest.mark.slow) for sigma in (0.01, 1.0))]
)
@pytest.mark.parametrize(
    "es",
    [
        OpenAIES(1.0, 1.0, 40, scale="absolute"),
        OpenAIES(1.0, 1.0, 40, scale="absolute", noise="uniform"),
        OpenAIES(1.0, 1.0, 40, False, "z-score", scale="absolute"),
        OpenAIES(1.0, 1.0, 40, False, "z-score", scale="absolute", noise="uniform"),
    ],
    ids=["antithetic ranks", "antithetic ranks, uniform", "article", "article, uniform"],
)
def test_the_expected_step_is_along_the_gradient(es: OpenAIES, sigma: float) -> None:
    """On a quadratic with unequal curvatures, whose smoothed gradient is the gradient itself.

    The step is averaged over generations with the center held still, up to a sigma at which the
    curvature outweighs the slope.
    """
    es = replace(es, sigma=sigma)
    curvature = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    w = torch.tensor([1.0, -1.0, 2.0, -0.5, 0.25, 1.5], dtype=torch.float64)
    gradient = -curvature * w  # of fitness -1/2 sum c w^2
    g = Genome({"w": w}, {"w": None})
    total, generations = torch.zeros_like(w), 30
    for generation in range(generations):
        scores = [
            -0.5 * float((curvature * m.tensor("w") ** 2).sum()) for m in members(es, g, generation)
        ]
        step = told(es, g, scores, generation=generation)
        assert step is not None
        total += step.center.tensor("w") - w
    cosine = float(torch.nn.functional.cosine_similarity(total, gradient, dim=0))
    assert cosine > 0.9


def test_the_z_scored_step_has_the_length_that_theory_gives() -> None:
    """On a linear fitness a . w it is lr / sigma * a / |a|, whatever the population."""
    a = torch.tensor([3.0, 4.0], dtype=torch.float64)
    g = Genome({"w": torch.zeros(2, dtype=torch.float64)}, {"w": None})
    for sigma, population in ((0.1, 50), (0.5, 100)):
        es = OpenAIES(sigma, 0.01, population, False, "z-score", scale="absolute")
        steps = []
        for generation in range(2400 // population):
            scores = [float(a @ m.tensor("w")) for m in members(es, g, generation)]
            step = told(es, g, scores, generation=generation)
            assert step is not None
            steps.append(step.center.tensor("w"))
        expected = 0.01 / sigma * a / 5
        torch.testing.assert_close(torch.stack(steps).mean(0), expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES.values() if isinstance(s, OpenAIES)])
def test_equal_scores_propose_nothing(strategy: OpenAIES) -> None:
    assert told(strategy, genome(), [0.7] * strategy.size) is None


def test_pairs_that_cancel_propose_nothing() -> None:
    es = OpenAIES(0.1, 0.1, 4, scale="absolute")
    assert told(es, genome(), [0.3, 0.3, 0.8, 0.8]) is None


def test_antithetic_members_mirror_each_other() -> None:
    g = genome()
    population = members(OpenAIES(0.1, population=6), g)
    for plus, minus in zip(population[::2], population[1::2], strict=True):
        for name in ("w", "b"):
            torch.testing.assert_close(plus.tensor(name) + minus.tensor(name), 2 * g.center[name])


def test_a_failed_member_counts_as_the_worst() -> None:
    g = genome()
    for es, worst in (
        (OpenAIES(0.1, population=4), -5.0),
        (OpenAIES(0.1, population=4, antithetic=False, shaping="z-score"), 1.0),
    ):
        a = told(es, g, [3.0, math.nan, 1.0, 2.0])
        b = told(es, g, [3.0, worst, 1.0, 2.0])
        assert a is not None
        assert b is not None
        assert torch.equal(a.center.tensor("w"), b.center.tensor("w"))


def test_low_precision_weights_are_summed_in_float32() -> None:
    es = OpenAIES(0.1, 0.5, 64, scale="absolute")
    values = [float(i % 7) for i in range(64)]
    low, high = genome(torch.bfloat16), genome(torch.float32)
    a, b = told(es, low, values), told(es, high, values)
    assert a is not None
    assert b is not None
    moved: list[Tensor] = [s.center.tensor("w") for s in (a, b)]
    assert moved[0].dtype == torch.float32
    torch.testing.assert_close(*moved)  # this center is exact in bfloat16


# What is refused

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: RandomMutation(0.0), "sigma must be a finite number > 0, got 0"),
    (lambda: RandomMutation(-1.0), "sigma must be a finite number > 0, got -1"),
    (lambda: RandomMutation(math.nan), "sigma.*got nan"),
    (lambda: RandomMutation(math.inf), "sigma.*got inf"),
    (lambda: RandomMutation(0.1, population=0), "population must be at least 1, got 0"),
    (lambda: RandomMutation(0.1, scale="std"), "scale must be one of rms, absolute, got 'std'"),  # type: ignore[arg-type]
    (lambda: RandomMutation(0.1, noise="levy"), "noise must be one of normal, uniform.*'levy'"),  # type: ignore[arg-type]
    (lambda: OpenAIES(0.0), "sigma.*got 0"),
    (lambda: OpenAIES(0.1, lr=0.0), "lr must be a finite number > 0, got 0"),
    (lambda: OpenAIES(0.1, lr=math.nan), "lr.*got nan"),
    (lambda: OpenAIES(0.1, lr=math.inf), "lr.*got inf"),
    (lambda: OpenAIES(0.1, population=0), "population must be at least 2, got 0"),
    (lambda: OpenAIES(0.1, population=1, antithetic=False), "population.*at least 2, got 1"),
    (lambda: OpenAIES(0.1, population=7), "even with antithetic.*got 7: use 8, or"),
    (lambda: OpenAIES(0.1, shaping="rank"), "shaping must be one of.*z-score.*'rank'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
