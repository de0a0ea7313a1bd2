"""The fast resampling draws as the obvious one does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evostep.polishing.bootstrap import interval, resample
from evostep.polishing.problem import Problem, make_problem
from evostep.scoring.confusion import CONFUSION_METRICS

G = torch.Generator().manual_seed(0)
N, DRAWS, SLOW = 120, 4000, 400
Y = torch.arange(N) % 3
Z = torch.randn(N, 3, generator=G) + 1.5 * torch.nn.functional.one_hot(Y, 3)
LABELS = (torch.rand(N, 2, generator=G) < 0.4).long()
BIAS = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.7, 0.2]])


def slowly(problem: Problem, decisions: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Draw examples, or groups, within their stratum, and measure what is drawn."""
    generator = torch.Generator().manual_seed(1)
    unit = torch.arange(len(problem)) if problem.groups is None else problem.groups
    values = []
    for _ in range(SLOW):
        often = torch.zeros(len(problem), dtype=torch.float64)
        strata = problem.strata if problem.groups is None else torch.zeros(len(problem))
        for stratum in strata.unique():
            units = unit[strata == stratum].unique()
            drawn = units[torch.randint(len(units), (len(units),), generator=generator)]
            often += drawn.bincount(minlength=int(unit.max()) + 1)[unit] * (strata == stratum)
        values.append(measure(problem.counts(decisions, often.expand(len(decisions), -1))))
    return torch.stack(values)


PROBLEMS = {
    "plain": make_problem(Z, Y),
    "weights": make_problem(Z, Y, weights=torch.rand(N, generator=G) + 0.1),
    "groups of several classes": make_problem(
        Z[: N // 3].repeat_interleave(3, 0),  # copies, two and two in a group
        Y[: N // 3].repeat_interleave(3),
        groups=(torch.arange(N) // 6).tolist(),
    ),
    "labels": make_problem(Z[:, :2], LABELS),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_fast_draws_are_the_slow_ones(name: str) -> None:
    problem = PROBLEMS[name]
    decisions = torch.stack([problem.decide(bias[: problem.biases]) for bias in BIAS])
    metric = CONFUSION_METRICS["macro-f1"]

    def measure(counts: Tensor) -> Tensor:
        return metric(counts, several=problem.several)

    fast = resample(problem, decisions, measure, draws=DRAWS, seed=0)
    slow = slowly(problem, decisions, measure)
    difference, obvious = fast[:, 1] - fast[:, 0], slow[:, 1] - slow[:, 0]
    # six standard errors of the mean; the spread within a tenth
    assert abs(difference.mean() - obvious.mean()) < 6 * obvious.std() / SLOW**0.5
    assert difference.std() == pytest.approx(float(obvious.std()), rel=0.15)
    assert torch.equal(fast, resample(problem, decisions, measure, draws=DRAWS, seed=0))


def test_equal_decisions_never_differ() -> None:
    problem = PROBLEMS["plain"]
    decisions = problem.decide(BIAS[0]).expand(2, -1)
    drawn = resample(problem, decisions, lambda counts: counts[..., 0, 0], draws=100)
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert len(drawn[:, 0].unique()) > 1


def test_each_class_is_drawn_as_often_as_it_occurs() -> None:
    problem = PROBLEMS["plain"]
    decisions = problem.decide(BIAS[0])[None]
    drawn = resample(problem, decisions, lambda counts: counts[..., 1, :].sum(-1), draws=50)
    assert drawn.unique().tolist() == [N / 3]


def test_p_is_below_five_percent_where_the_interval_leaves_zero_out() -> None:
    draws = torch.arange(-200, 9800).double()
    assert interval(1.0, draws).confirmed
    assert interval(1.0, draws).p < 0.05
    draws = torch.arange(-300, 9700).double()
    assert not interval(1.0, draws).confirmed
    assert interval(1.0, draws).p > 0.05
    assert interval(0.0, torch.zeros(100)).p == 1.0


@pytest.mark.parametrize("flattery", [0.6, -0.6])
def test_what_is_taken_off_moves_the_end_that_it_flatters_alone(flattery: float) -> None:
    drawn = torch.randn(4000, generator=torch.Generator().manual_seed(0)) + 2.2
    plain, less = interval(2.2, drawn), interval(2.2, drawn, flattery)
    assert less.value == pytest.approx(plain.value - flattery)
    assert less.low == pytest.approx(plain.low - max(flattery, 0), abs=1e-9)
    assert less.high == pytest.approx(plain.high - min(flattery, 0), abs=1e-9)
    assert less.confirmed == (less.p <= 0.05)
    assert (less.p > plain.p) == (flattery > 0)


def test_what_sums_in_another_order_differ_by_is_no_gain() -> None:
    found = interval(1e-16, torch.full((300,), 1e-16))
    assert (found.low, found.high, found.p) == (0.0, 0.0, 1.0)
    assert not found.confirmed
    assert interval(1e-6, torch.full((300,), 1e-6)).confirmed
