"""PairedTest: p values against scipy and statsmodels, levels, power, false acceptances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from torch import Tensor, nn

from evostep import Fitness, Scores
from evostep.acceptance import Improves, Ladder, PairedTest
from evostep.acceptance.tails import binomial_tail, student_tail

CLASSES = 3


def scores(values: Any) -> Scores:
    values = torch.as_tensor(values, dtype=torch.float64)
    return Scores(float(values.mean()), values)


def flips(n: int, fixed: int, broken: int) -> tuple[Scores, Scores]:
    """A parent that is half right, and a candidate that fixes and breaks so many examples."""
    parent = torch.arange(n) % 2
    candidate = parent.clone()
    candidate[torch.where(parent == 0)[0][:fixed]] = 1
    candidate[torch.where(parent == 1)[0][:broken]] = 0
    return scores(parent), scores(candidate)


# Tails.


@pytest.mark.parametrize("n", [0, 1, 2, 7, 50, 1000, 1001, 5000, 60_000])
def test_binomial_tail_is_scipys(n: int) -> None:
    ks = {0, 1, n // 3, n // 2, n // 2 + 1, n // 2 + int(2 * math.sqrt(n)), n - 1, n}
    for k in (k for k in ks if 0 <= k <= n):
        expected = stats.binom.sf(k - 1, n, 0.5)
        assert binomial_tail(k, n) == pytest.approx(expected, rel=1e-9, abs=1e-300), k


@given(st.floats(-60, 60), st.integers(1, 20_000))
def test_student_tail_is_scipys(t: float, df: int) -> None:
    assert student_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-8, abs=1e-290)


def test_student_tail_at_the_ends() -> None:
    assert student_tail(math.inf, 3) == 0.0
    assert student_tail(-math.inf, 3) == 1.0
    assert math.isnan(student_tail(math.nan, 3))


# p values.


@pytest.mark.parametrize(
    ("fixed", "broken"), [(0, 0), (1, 0), (5, 0), (0, 5), (12, 4), (4, 12), (30, 30), (60, 35)]
)
def test_mcnemar_is_scipys_and_half_of_statsmodels(fixed: int, broken: int) -> None:
    p = PairedTest(kind="mcnemar").p_value(*flips(200, fixed, broken))
    if fixed + broken == 0:
        assert p == 1.0
        return
    one_sided = stats.binomtest(fixed, fixed + broken, alternative="greater").pvalue
    assert p == pytest.approx(one_sided, rel=1e-12)
    if fixed > broken:  # statsmodels has two sides
        table = [[100 - broken, broken], [fixed, 100 - fixed]]
        assert 2 * p == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-12)


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.05, 0.4])
def test_t_is_scipys(shift: float) -> None:
    rng = np.random.default_rng(3)
    parent = rng.normal(size=80)
    candidate = parent + shift + rng.normal(size=80)
    p = PairedTest(kind="t").p_value(scores(parent), scores(candidate))
    expected = stats.ttest_rel(candidate, parent, alternative="greater").pvalue
    assert p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("gain", "p"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_t_with_gains_that_are_all_the_same(gain: float, p: float) -> None:
    parent = torch.arange(10.0)
    assert PairedTest(kind="t").p_value(scores(parent), scores(parent + gain)) == p


def exact_permutation(gains: Tensor) -> float:
    """All 2^n signs, one after the other."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(gains)))).double()
    return float((signs @ gains >= gains.sum() - 1e-12).double().mean())


def test_permutation_of_a_mean_is_all_signs_in_the_limit() -> None:
    gains = torch.tensor([0.5, -0.25, 1.0, 0.125, 0.75, -0.5, 0.0, 0.3], dtype=torch.float64)
    parent = torch.zeros(8, dtype=torch.float64)
    test = PairedTest(kind="permutation", permutations=40_000)
    assert test.p_value(scores(parent), scores(gains)) == pytest.approx(
        exact_permutation(gains), abs=0.01
    )


def test_permutation_of_equal_scores_is_one() -> None:
    same = scores(torch.ones(5))
    assert PairedTest(kind="permutation").p_value(same, same) == 1.0


def test_permutation_never_gives_a_p_value_of_zero() -> None:
    worse, better = scores(torch.zeros(40)), scores(torch.ones(40))
    test = PairedTest(kind="permutation", permutations=999)
    assert test.p_value(worse, better) == 1 / 1000  # what was seen is one of the permutations


def fitness_of(metric: Any, n: int = 60) -> tuple[Fitness, nn.Linear]:
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(CLASSES, (n,), generator=generator)
    inputs = nn.functional.one_hot(targets, CLASSES) + torch.randn(n, CLASSES, generator=generator)
    model = nn.Linear(CLASSES, CLASSES, bias=False)
    nn.init.eye_(model.weight)
    return Fitness(model, [(inputs[:40], targets[:40]), (inputs[40:], targets[40:])], metric), model


def parent_and_candidate(metric: Any, n: int = 60) -> tuple[Scores, Scores]:
    fitness, model = fitness_of(metric, n)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.9, 0.0], [0.0, 1.0, 0.9], [0.9, 0.0, 1.0]]))
        parent = fitness.score(fitness.examples(), keep_outputs=True)
        nn.init.eye_(model.weight)
        candidate = fitness.score(fitness.examples(), keep_outputs=True)
    assert candidate.value > parent.value
    return parent, candidate


def test_swapping_outputs_agrees_with_turning_signs() -> None:
    """Accuracy as a metric of all examples at once gives what the mean over examples gives."""
    by_example = parent_and_candidate("accuracy")

    def whole(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).double().mean())

    at_once = parent_and_candidate(whole)
    assert at_once[0].per_example is None
    test = PairedTest(kind="permutation", permutations=3000)
    fast, slow = test.p_value(*by_example), test.p_value(*at_once)
    assert 0 < fast < 0.2
    assert slow == pytest.approx(fast, abs=0.02)


def test_permutation_serves_macro_f1() -> None:
    parent, candidate = parent_and_candidate("macro-f1")
    assert parent.per_example is None
    test = PairedTest(kind="permutation", permutations=199)
    p = test.p_value(parent, candidate)
    assert test.p_value(parent, candidate) == p  # seeded purely
    assert test.p_value(candidate, parent) > 0.5
    # the slow twin, with a generator of its own
    generator = torch.Generator().manual_seed(11)
    gain = candidate.value - parent.value
    reached = 0
    for _ in range(200):
        swap = torch.rand(len(parent.targets), 1, generator=generator) < 0.5
        before = torch.where(swap, candidate.outputs, parent.outputs)
        after = torch.where(swap, parent.outputs, candidate.outputs)
        assert parent.measure is not None
        swapped = parent.measure(after, parent.targets) - parent.measure(before, parent.targets)
        reached += swapped >= gain - 1e-12
    assert p == pytest.approx((1 + reached) / 201, abs=0.08)


def test_stopping_early_never_changes_the_verdict() -> None:
    parent, candidate = parent_and_candidate("macro-f1", n=60)
    for attempts in (1, 2, 3):
        test = PairedTest(alpha=0.2, kind="permutation", permutations=99)
        whole = test.p_value(parent, candidate, attempts) <= test.level(attempts)
        assert test(parent, candidate, attempts) is whole
    # a hopeless candidate is given up after few permutations
    asked = 0

    def counted(outputs: Tensor, targets: Tensor) -> float:
        nonlocal asked
        asked += 1
        return 0.0

    hopeless = Scores(0.0, None, torch.zeros(4, 2), torch.zeros(4), counted)
    assert not PairedTest(kind="permutation", permutations=100_000)(hopeless, hopeless, 1)
    assert asked < 2 * 0.05 * 100_000


def test_outputs_in_nests_are_swapped_whole() -> None:
    def metric(outputs: Any, targets: Tensor) -> float:
        assert torch.equal(outputs["a"].argmax(1), outputs["b"][0])  # never half an example
        return float((outputs["b"][0] == targets).double().mean())

    targets = torch.zeros(12, dtype=torch.long)
    wrong, right = (nn.functional.one_hot(targets + k, 2).double() for k in (1, 0))
    nested = [{"a": o, "b": (o.argmax(1),)} for o in (wrong, right)]
    parent, candidate = (Scores(v, None, o, targets, metric) for v, o in enumerate(nested))
    assert PairedTest(kind="permutation")(parent, candidate, 1)
    assert not PairedTest(kind="permutation")(candidate, parent, 1)


# Levels, power, false acceptances.


@given(st.floats(0.001, 0.5), st.integers(1, 2000))
def test_levels_sum_to_alpha_whatever_the_number_of_attempts(alpha: float, k: int) -> None:
    test = PairedTest(alpha=alpha)
    spent = sum(test.level(i) for i in range(1, k + 1))
    assert spent == pytest.approx(alpha * k / (k + 1))
    assert spent < alpha


NULLS: dict[str, Callable[[torch.Generator, int], Tensor]] = {
    "mcnemar": lambda g, n: torch.where(
        torch.rand(n, generator=g) < 0.3, (torch.rand(n, generator=g) < 0.5).double(), 1.0
    ),
    "t": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64),
    "permutation": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64).exp(),
}


@pytest.mark.parametrize("kind", NULLS)
def test_a_run_of_null_candidates_is_accepted_with_probability_alpha_at_most(kind: Any) -> None:
    """Family-wise: ever accepting anything among ten attempts, over 250 runs."""
    alpha, runs = 0.2, 250
    test = PairedTest(alpha=alpha, kind=kind, permutations=99)
    generator = torch.Generator().manual_seed(0)
    false = 0
    for _ in range(runs):
        for k in range(1, 11):
            pair = [scores(NULLS[kind](generator, 60)) for _ in range(2)]
            if test(*pair, attempts=k):
                false += 1
                break
    limit = alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert false / runs <= limit
    if kind != "mcnemar":  # and the level is used, not just kept: a discrete test is conservative
        assert false / runs >= 0.1


@pytest.mark.parametrize("kind", ["mcnemar", "t", "permutation"])
def test_a_candidate_that_is_better_is_accepted(kind: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    accepted = 0
    for k in range(20):
        parent = (torch.rand(500, generator=generator) < 0.6).double()
        fixed = (torch.rand(500, generator=generator) < 0.25).double()
        broken = (torch.rand(500, generator=generator) < 0.03).double()
        candidate = torch.where(parent == 1, 1 - broken, fixed)
        accepted += PairedTest(kind=kind)(scores(parent), scores(candidate), attempts=1 + k % 5)
    assert accepted >= 19


@pytest.mark.parametrize("kind", ["mcnemar", "t", "permutation"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_never_accepted(kind: Any, bad: float) -> None:
    worse, better = torch.zeros(50), torch.ones(50)
    better[3] = bad
    assert not PairedTest(kind=kind)(scores(worse), scores(better), 1)


# Errors.

NOTHING = Scores(0.5)
WRONG = {
    "alpha 0": (lambda: PairedTest(alpha=0), "alpha must lie between 0 and 1, got 0"),
    "alpha 1": (lambda: PairedTest(alpha=1.0), "alpha .* got 1.0"),
    "kind": (lambda: PairedTest(kind="z"), "kind must be one of mcnemar, t, permutation, got 'z'"),  # type: ignore[arg-type]
    "every": (lambda: PairedTest(every="epoch"), "'generation' or 'phase', got 'epoch'"),  # type: ignore[arg-type]
    "every of Improves": (lambda: Improves(every="run"), "got 'run'"),  # type: ignore[arg-type]
    "permutations": (lambda: PairedTest(permutations=0), "permutations .* at least 1, got 0"),
    "mcnemar": (lambda: PairedTest()(NOTHING, NOTHING, 1), "use kind='permutation'"),
    "t": (lambda: PairedTest(kind="t")(NOTHING, NOTHING, 1), "use kind='permutation'"),
    "ladder": (lambda: Ladder()(NOTHING, NOTHING, 1), r"use PairedTest\(kind='permutation'\)"),
    "permutation": (
        lambda: PairedTest(kind="permutation")(NOTHING, NOTHING, 1),
        "needs the outputs of each example",
    ),
    "losses": (
        lambda: PairedTest()(scores([0.5, 1.0]), scores([1.0, 1.0]), 1),
        "right .1. or wrong .0., got 0.5: use kind='t'",
    ),
    "known beforehand": (
        lambda: PairedTest().check(fitness_of("macro-f1")[0]),
        "use kind='permutation'",
    ),
    "bare callable": (lambda: PairedTest(kind="t").check(lambda: 0.5), "use kind='permutation'"),
    "bare callable, permutation": (
        lambda: PairedTest(kind="permutation").check(lambda: 0.5),
        "make an evostep.Fitness",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_errors_say_what_to_do(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_is_known_before_scoring() -> None:
    assert fitness_of("accuracy")[0].gives_per_example is True
    assert fitness_of("balanced-accuracy")[0].gives_per_example is False
    assert fitness_of(lambda outputs, targets: 0.5)[0].gives_per_example is None
    PairedTest().check(fitness_of(lambda outputs, targets: 0.5)[0])
