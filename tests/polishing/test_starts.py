"""Starts: frequencies, adjustment, and the tuned one."""

import pytest
import torch

from evostep.errors import InputError
from evostep.polishing.objective import parse_objective
from evostep.polishing.problem import make_problem
from evostep.polishing.starts import TAUS, adjustment, check_prior, fit_starts, subset

Y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
G = torch.Generator().manual_seed(0)
Z = (
    torch.randn(100, 3, generator=G)
    + torch.nn.functional.one_hot(Y, 3)
    + torch.tensor([1.0, 0, -1])
)
ALL = torch.ones(1, 100, dtype=torch.float64)


def test_full_adjustment_is_minus_the_log_of_the_frequencies() -> None:
    bias = adjustment(make_problem(Z, Y), ALL)[0]
    frequency = (torch.tensor([60.0, 30.0, 10.0]) + 0.5) / 101.5
    wanted = -frequency.log()
    torch.testing.assert_close(bias.float(), wanted - wanted.mean())


def test_frequencies_are_weighted_and_of_the_examples_that_count() -> None:
    weights = torch.where(Y == 2, 3.0, 1.0)
    rows = ALL.clone()
    rows[0, :30] = 0
    bias = adjustment(make_problem(Z, Y, weights=weights), rows)[0]
    assert bias.max() - bias.min() < 1e-6  # 30, 30 and 10 times 3


def test_a_label_is_adjusted_by_its_odds() -> None:
    problem = make_problem(Z[:, :1], (Y == 2).long())
    share = 10.5 / 101
    odds = torch.tensor((1 - share) / share)
    assert float(adjustment(problem, ALL)) == pytest.approx(float(odds.log()), rel=1e-5)


def test_a_given_prior_rules() -> None:
    problem = make_problem(Z, Y)
    prior = check_prior([2.0, 1.0, 1.0], problem)
    bias = adjustment(problem, ALL, prior)[0]
    assert float(bias[1] - bias[0]) == pytest.approx(0.6931, abs=1e-4)
    for wrong in ([1.0, 1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0]):
        with pytest.raises(InputError, match="prior must be 3 numbers"):
            check_prior(wrong, problem)
    with pytest.raises(InputError, match="share of examples"):
        check_prior([1.5], make_problem(Z[:, :1], (Y == 2).long()))


def test_the_tuned_tau_is_the_best_and_of_equals_the_smallest() -> None:
    problem, objective = make_problem(Z, Y), parse_objective("balanced-accuracy")
    plain, full, tuned = fit_starts(problem, objective, ALL)[:, 0]
    assert not plain.any()

    def score(bias: torch.Tensor) -> float:
        return float(objective.value(problem.counts(problem.decide(bias)), several=False))

    scores = [score(tau * full) for tau in TAUS]
    best = max(range(len(TAUS)), key=lambda i: (scores[i], -i))
    torch.testing.assert_close(tuned, TAUS[best] * full)
    assert score(tuned) > score(plain)


def test_each_set_is_fitted_on_its_own_examples() -> None:
    problem, objective = make_problem(Z, Y), parse_objective("macro-f1")
    rows = (torch.rand(2, 100, generator=G) < 0.7).double()
    rows[:, -5:] = 1
    together = fit_starts(problem, objective, rows)
    for r in range(2):
        there = rows[r].nonzero().flatten()
        alone = fit_starts(subset(problem, there), objective, torch.ones(1, len(there)).double())
        torch.testing.assert_close(together[:, r], alone[:, 0])
