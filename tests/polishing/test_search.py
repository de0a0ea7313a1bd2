"""Many searches at once against one that is written out, and the middle of a plateau."""

import pytest
import torch
from torch import Tensor

from evostep.noise import derive_seed, make_generator
from evostep.polishing.objective import Objective, parse_objective
from evostep.polishing.problem import Problem, make_problem
from evostep.polishing.search import (
    Scorer,
    Search,
    center_on_plateau,
    largest,
    search,
    undecided,
    units,
)
from evostep.strategies.shaping import log_rank
from evostep.strategies.snes import default_lr_sigma

G = torch.Generator().manual_seed(0)
Y = torch.arange(90) % 3
Z = torch.randn(90, 3, generator=G) + torch.nn.functional.one_hot(Y, 3) + torch.tensor([1.0, 0, 0])
PROBLEM = make_problem(Z, Y)
SETTINGS = Search(population=6, generations=5, seed=3)


def one_search(
    problem: Problem, objective: Objective, row: Tensor, start: Tensor, pull: float
) -> list[Tensor]:
    """SNES on one set of examples, member by member."""
    unit, mean = units(problem), start.clone()
    deviation = SETTINGS.sigma * unit
    path = [mean.clone()]
    for generation in range(SETTINGS.generations):
        generator = make_generator(derive_seed(SETTINGS.seed, "decision", generation))
        half = torch.randn(3, len(start), generator=generator, dtype=torch.float64)
        noise = [*half, *(-half)]
        scores = []
        for eps in noise:
            bias = mean + deviation * eps
            counts = problem.counts(problem.decide(bias), row)
            parent = problem.counts(problem.decide(torch.zeros_like(bias)), row)
            away = float(((bias - start) / unit).square().sum())
            fitness = float(objective.fitness(counts, parent, several=problem.several))
            scores.append(fitness - pull * away)
        utilities = log_rank(scores).tolist()
        steps = list(zip(utilities, noise, strict=True))
        mean = mean + deviation * torch.stack([u * e for u, e in steps]).sum(0)
        growth = torch.stack([u * (e * e - 1) for u, e in steps]).sum(0)
        deviation = deviation * (default_lr_sigma(len(start)) / 2 * growth).exp()
        path.append(mean)
    return path


@pytest.mark.parametrize("kind", ["classes", "binary", "labels"])
def test_searches_at_once_are_those_done_one_by_one(kind: str) -> None:
    problem = {
        "classes": PROBLEM,
        "binary": make_problem(Z[:, 0], (Y == 0).long()),
        "labels": make_problem(Z[:, :2], torch.stack([Y == 0, Y > 1], 1).long()),
    }[kind]
    objective = parse_objective("0.5*macro-f1 + 0.5*balanced-accuracy")
    rows = torch.ones(2, 90, dtype=torch.float64)
    rows[1, :20] = 0
    start = torch.stack([torch.zeros(problem.biases), torch.ones(problem.biases) / 3]).double()
    path = search(problem, objective, rows, start, (0.001, 0.1), SETTINGS)
    for r in range(2):
        for p, pull in enumerate((0.001, 0.1)):
            slow = one_search(problem, objective, rows[r], start[r], pull)
            torch.testing.assert_close(path[:, r, p], torch.stack(slow))


@pytest.mark.parametrize("n", [1, 7, 50_000])
def test_the_largest_is_found_class_by_class_as_at_once(n: int) -> None:
    outputs = torch.randn(n, 5, generator=G).round()  # with ties, of which the first counts
    biases = torch.randn(3, 5, generator=G).round()
    problem = Problem(outputs, torch.zeros(n, dtype=torch.long), "classes")
    found = largest(outputs.T.contiguous(), biases)
    assert torch.equal(found.long(), problem.decide(biases[:, None]))


def test_a_search_finds_what_a_bias_has_spoilt() -> None:
    objective, rows = parse_objective("worst-class-recall"), torch.ones(1, 90).double()
    path = search(PROBLEM, objective, rows, torch.zeros(1, 3).double(), (0.001,), Search(seed=1))

    def value(bias: Tensor) -> float:
        counts = PROBLEM.counts(PROBLEM.decide(bias))
        return float(objective.value(counts, several=False))

    assert value(path[-1, 0, 0]) > value(path[0, 0, 0]) + 0.1


def test_a_metric_that_nothing_changes_moves_nothing_beyond_the_pull() -> None:
    problem = make_problem(Z + 1000 * torch.nn.functional.one_hot(Y, 3), Y)
    wide = Problem(problem.outputs, problem.targets, "classes")
    path = search(
        wide,
        parse_objective("accuracy"),
        torch.ones(1, 90).double(),
        torch.zeros(1, 3).double(),
        (0.01,),
        Search(sigma=0.01, generations=5),
    )
    assert (path[-1].abs() < 0.01 * units(wide)).all()


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_what_is_hardly_told_apart_does_not_hold_the_others_back(kind: str) -> None:
    """Two classes (a label) with outputs that are nearly equal, and another that is biased."""
    drawn = torch.Generator().manual_seed(1)
    if kind == "classes":
        truth = torch.arange(300) % 4
        outputs = 2.0 * torch.nn.functional.one_hot(truth // 2 + truth % 2 * (truth > 1), 3)
        outputs = outputs[:, [0, 0, 1, 2]] + torch.randn(300, 4, generator=drawn)
        outputs[:, 1] = outputs[:, 0] + 1e-3 * torch.randn(300, generator=drawn)
        problem, spoilt = make_problem(outputs + torch.tensor([0, 0, 2.0, 0]), truth), 2
    else:
        both = torch.randint(2, (300, 2), generator=drawn)
        outputs = (2.0 * both - 1 + torch.randn(300, 2, generator=drawn)) * torch.tensor([1e-3, 1])
        problem, spoilt = make_problem(outputs + torch.tensor([0, 2.0]), both), 1
    start = torch.zeros(1, problem.biases).double()
    rows = torch.ones(1, 300).double()
    found = search(problem, parse_objective("accuracy"), rows, start, (0.001,), Search())[-1, 0, 0]
    others = torch.cat([found[:spoilt], found[spoilt + 1 :]])
    assert found[spoilt] - (others.mean() if kind == "classes" else 0) < -1


def test_a_class_that_is_never_among_the_first_two_has_a_unit() -> None:
    outputs = torch.tensor([[3.0, 0.0, -50.0], [0.0, 4.0, -50.0]])
    assert units(Problem(outputs, torch.tensor([0, 1]), "classes")).tolist() == [3.25, 3.25, 3.25]
    same = torch.zeros(2, 3)
    assert units(Problem(same, torch.tensor([0, 1]), "classes")).tolist() == [1, 1, 1]


@pytest.mark.parametrize("bias", [[0.3, -0.2, 0.1], [0.0, 0.0, 0.0]])
def test_the_middle_of_a_plateau_decides_the_same_and_is_far_from_its_ends(
    bias: list[float],
) -> None:
    given = torch.tensor(bias, dtype=torch.float64)
    middle = center_on_plateau(PROBLEM, given)
    assert torch.equal(PROBLEM.decide(middle), PROBLEM.decide(given))
    again = center_on_plateau(PROBLEM, middle)
    last = again[-1] - middle[-1]  # the last one moved knows all the others
    assert abs(float(last)) < 0.1


def test_the_middle_of_a_threshold_is_between_its_neighbours() -> None:
    problem = make_problem(torch.tensor([-3.0, -1.0, 2.0]), torch.tensor([0, 0, 1]))
    assert center_on_plateau(problem, torch.tensor([0.9])).tolist() == [-0.5]
    only = center_on_plateau(problem, torch.tensor([0.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert only.tolist() == [0.5]
    beyond = torch.tensor([5.0])
    assert center_on_plateau(problem, beyond).tolist() == [5.0]


@pytest.mark.parametrize("spread", [0.0, 1e-7, 0.1, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_only_what_members_may_decide_otherwise_is_decided_for_each(
    spread: float, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(300, 5, generator=generator).round(decimals=1)  # with ties
    targets = torch.arange(300) % 5
    biases = 0.3 + spread * torch.randn(20, 5, generator=generator).double()
    weights = torch.rand(300, generator=generator) if weighted else None
    problem = make_problem(outputs, targets, weights=weights)
    each = torch.stack([problem.decide(bias) for bias in biases])
    differ = (each != each[0]).any(0)
    torn = undecided(outputs.T.contiguous(), biases)
    assert bool((torn | ~differ).all())
    if spread <= 0.1:  # and few others are looked at
        assert int(torn.sum()) <= int(differ.sum()) + 120
    objective = parse_objective("macro-f1")
    row = torch.arange(300).double() % 3  # some not at all, some twice
    slow = objective.value(problem.counts(each, row), several=False)
    fast = Scorer(problem, objective, row).fitness(biases)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
