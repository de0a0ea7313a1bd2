"""No example has a part in what decides about it."""

import pytest
import torch

from evostep.polishing.crossfit import CrossFit
from evostep.polishing.folds import make_folds
from evostep.polishing.objective import parse_objective
from evostep.polishing.optimism import optimism
from evostep.polishing.problem import make_problem
from evostep.polishing.procedure import cross_fit, fit_once, left_out
from evostep.polishing.search import Search

G = torch.Generator().manual_seed(0)
N, K = 150, 3
Y = torch.arange(N) % 3
Z = torch.randn(N, 3, generator=G) + torch.nn.functional.one_hot(Y, 3) + torch.tensor([2.0, 0, 0])
FOLDS = make_folds(Y, K, 0)
SETTINGS = Search(population=4, generations=8)


def run(targets: torch.Tensor, metric: str = "macro-f1") -> CrossFit:
    return cross_fit(make_problem(Z, targets), parse_objective(metric), FOLDS, SETTINGS)


@pytest.mark.parametrize("fold", range(K))
def test_other_labels_in_a_fold_change_nothing_that_decides_about_it(fold: int) -> None:
    before = run(Y)
    other = torch.where(fold == FOLDS, (Y + 1) % 3, Y)
    after = run(other)
    here = fold == FOLDS
    assert torch.equal(before.outputs[:, here], after.outputs[:, here])
    assert before.chosen_by_fold[fold] == after.chosen_by_fold[fold]
    assert not torch.equal(before.outputs[2, ~here], after.outputs[2, ~here])


def test_every_set_leaves_two_folds_at_most() -> None:
    sets = left_out(5)
    assert len(sets) == 1 + 5 + 10 == len(set(sets))


def test_what_is_decided_is_better_than_the_checkpoint_where_it_is_spoilt() -> None:
    found = run(Y, "balanced-accuracy")
    problem = make_problem(Z, Y)
    right = (problem.decided(found.outputs) == Y).double().mean(1)
    assert right[2] > right[0]
    assert torch.equal(found.outputs[0], Z)
    assert found.evaluations == SETTINGS.generations * len(left_out(K)) * 3 * 4


def test_pooled_folds_flatter_the_worst_class_but_not_the_mean() -> None:
    """The true overstatement is positive where classes are alike, as drawing anew shows."""
    problem = make_problem(Z - torch.tensor([2.0, 0, 0]), Y)
    settings = Search(population=8, generations=12)
    start = "tuned logit adjustment"
    worst = optimism(problem, parse_objective("worst-class-recall"), 5, start, 0.001, settings)
    mean = optimism(problem, parse_objective("accuracy"), 5, start, 0.001, settings)
    assert worst[1] > 0.01
    assert worst[1] > mean[1]
    none = optimism(problem, parse_objective("worst-class-recall"), 5, "checkpoint", None, settings)
    assert none.abs().max() < 1e-12


def test_what_is_held_out_decides_nothing() -> None:
    outputs = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(120) % 3
    held = torch.arange(120) < 40
    folds = torch.where(held, -1, torch.arange(120) // 3 % 3)
    found = []
    for labels in (truth, torch.where(held, (truth + 1) % 3, truth)):
        problem = make_problem(outputs, labels)
        found.append(fit_once(problem, parse_objective("macro-f1"), folds, Search(8, 4)))
    assert torch.equal(found[0].outputs, found[1].outputs)
    assert found[0].outputs.shape == (3, 40, 3)
    assert found[0].chosen == found[1].chosen
