"""Racing: the decisions of full scoring from fewer examples, and no trace."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import (
    AllWeights,
    Always,
    Evolution,
    Fitness,
    Improves,
    Ladder,
    Only,
    OpenAIES,
    RandomMutation,
    RandomSearch,
    Record,
)
from evostep.engines.base import CannotScore
from evostep.engines.inplace import InPlace, OneByOne
from evostep.engines.racing import Racing
from evostep.engines.racing.bounds import Strata, behind, falling, looks, quantile, share_out
from evostep.engines.racing.race import Race
from evostep.engines.racing.rows import Rows
from evostep.engines.racing.session import Races, margin
from evostep.engines.vmap import Vmap
from evostep.genome.slots import slots_of_module
from evostep.scoring.batches import Examples
from evostep.scoring.evaluator import Competition, Evaluator, Round
from evostep.scoring.isolation import ModuleState
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace

MEMBERS = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, by: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=by, dtype=torch.float64)


def normal(*shape: int, by: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=by, dtype=torch.float64)


# Bounds


def behind_by_loops(
    differences: Tensor,
    strata: Strata,
    usual: Tensor,
    z: float,
    limit: float,
    group: dict[int, int],
) -> list[bool]:
    """The slow twin: the formulas of the module, one example after the other."""
    N, n = strata.sizes.tolist(), strata.seen.tolist()
    found = []
    for row in differences.tolist():
        sums, squares = [0.0] * len(N), [0.0] * len(N)
        for j, d in zip(strata.rows.tolist(), row, strict=True):
            sums[group[j]] += d
            squares[group[j]] += d * d
        D = sum(N[h] / n[h] * sums[h] for h in range(len(N)))
        q = [max(squares[h] / n[h], float(usual[h])) for h in range(len(N))]
        V = sum(N[h] ** 2 / n[h] * (1 - n[h] / N[h]) * q[h] for h in range(len(N)))
        c = min(limit, 2 * max(abs(d) for row in differences.tolist() for d in row)) / 2
        found.append(-D - c > z * math.sqrt(V + c * c))
    return found


@pytest.mark.parametrize("limit", [1.0, math.inf])
@pytest.mark.parametrize("seed", range(6))
def test_the_bound_agrees_with_the_slow_twin(seed: int, limit: float) -> None:
    by = generator(seed)
    strata = Strata(torch.randperm(50, generator=by), 4, by)
    everything = copy.deepcopy(strata)
    group = {
        int(j): h
        for h in range(4)
        for j in everything.draw(torch.where(torch.arange(4) == h, strata.sizes, 0))
    }
    strata.draw(torch.tensor([12, 5, 3, 1]))
    strata.draw(torch.tensor([0, 2, 3, 1]))
    differences = normal(40, 27, by=by) - uniform(40, 1, by=by)
    usual = uniform(4, by=by) * 2
    twin = behind_by_loops(differences, strata, usual, 1.5, limit, group)
    assert behind(differences, strata, usual, 1.5, limit).tolist() == twin
    assert 0 < sum(twin) < 40


TAILS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "few predictions": lambda n, by: (uniform(n, by=by) < 0.02).double() * normal(n, by=by).sign(),
    "many predictions": lambda n, by: (uniform(n, by=by) < 0.3).double() * normal(n, by=by).sign(),
    "normal": lambda n, by: normal(n, by=by),
    "heavy tails": lambda n, by: normal(n, by=by) / normal(3, n, by=by).square().mean(0).sqrt(),
    "skewed to gains": lambda n, by: normal(n, by=by).exp(),
    "skewed to losses": lambda n, by: -normal(n, by=by).exp(),
}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("groups", [1, 8])
def test_one_that_draws_level_in_the_end_is_rarely_said_to_have_lost(
    name: str, groups: int
) -> None:
    """The law: over orders of the examples, no more often than the level says."""
    by, n, level = generator(3), 800, 0.02
    errors = 0
    for _ in range(250):
        d = TAILS[name](n, by)
        # many would not draw level: give one example, or all, what is missing
        d = d - d.mean() if name not in ("few predictions", "many predictions") else _level(d, by)
        assert abs(float(d.sum())) < 1e-9
        strata = Strata(torch.arange(n), groups, by)
        rows = strata.draw(strata.sizes // 4)
        errors += bool(behind(d[rows][None], strata, torch.zeros(groups), quantile(level)))
    # gains that few have met are what the bound does not see
    assert errors / 250 <= level * (3 if name == "skewed to gains" else 1.5)


def _level(d: Tensor, by: torch.Generator) -> Tensor:
    """Turn as many signs as makes the sum 0, dropping one difference if it is odd."""
    places = d.nonzero().flatten()
    places = places[torch.randperm(len(places), generator=by)]
    half = len(places) // 2
    d = torch.zeros_like(d)
    d[places[:half]], d[places[half : 2 * half]] = 1.0, -1.0
    return d


def test_who_loses_clearly_is_found_at_once() -> None:
    by, n = generator(), 5000
    d = torch.where(uniform(8, n, by=by) < 0.3, -1.0, 0.0)
    strata = Strata(torch.arange(n), 16, by)
    rows = strata.draw(strata.sizes // 16)
    assert bool(behind(d[:, rows], strata, torch.zeros(16), quantile(1e-6)).all())


def test_a_tie_or_one_example_less_is_never_dropped() -> None:
    """Not even where nothing else ever differs, and little confidence is asked for."""
    strata = Strata(torch.arange(100), 4, generator())
    strata.draw(strata.sizes - 1)
    differences = torch.zeros(2, 96, dtype=torch.float64)
    differences[1, 7] = -1.0
    assert not behind(differences, strata, torch.zeros(4), quantile(0.15), limit=1.0).any()


def test_estimates_are_unbiased_whatever_the_groups_are() -> None:
    by = generator(1)
    values = normal(2, 60, by=by).exp()
    estimates = []
    for _ in range(2000):
        strata = Strata(torch.arange(60), 3, by)
        rows = strata.draw(torch.tensor([15, 5, 2]))
        estimates.append(strata.total(values[:, rows]))
    found = torch.stack(estimates)
    error = found.std(0) / math.sqrt(len(found))
    assert bool(((found.mean(0) - values.sum(1)).abs() < 4 * error).all())


def test_a_group_is_seen_in_random_order_and_each_example_once() -> None:
    first = set()
    for seed in range(60):
        strata = Strata(torch.arange(10), 2, generator(seed))
        rows = strata.draw(torch.tensor([1, 0])).tolist() + strata.draw(strata.left).tolist()
        assert sorted(rows) == list(range(10))
        assert strata.rows.tolist() == rows
        first.add(rows[0])
    assert first == set(range(5))


@pytest.mark.parametrize("seed", range(8))
def test_falling_values_agree_with_the_slow_twin(seed: int) -> None:
    by = generator(seed)
    values, weights = normal(9, by=by), uniform(9, by=by) + 0.1
    blocks = [[i] for i in range(9)]

    def mean(block: list[int]) -> float:
        return float((values[block] * weights[block]).sum() / weights[block].sum())

    while rising := [k for k in range(len(blocks) - 1) if mean(blocks[k]) < mean(blocks[k + 1])]:
        k = rising[0]
        blocks[k : k + 2] = [blocks[k] + blocks[k + 1]]
    twin = [mean(block) for block in blocks for _ in block]
    assert falling(values, weights).tolist() == pytest.approx(twin)


@pytest.mark.parametrize("seed", range(20))
def test_examples_are_shared_out_to_the_last(seed: int) -> None:
    by = generator(seed)
    left = torch.randint(0, 40, (6,), generator=by)
    usual = torch.where(uniform(6, by=by) < 0.3, 0.0, uniform(6, by=by))
    count = int(torch.randint(0, int(left.sum()) + 1, (), generator=by))
    taken = share_out(count, left, usual)
    assert int(taken.sum()) == count
    assert bool((taken <= left).all())
    assert bool((taken >= 0).all())


@pytest.mark.parametrize("n", [1, 2, 7, 100, 5000])
def test_looks_rise_by_a_quarter_at_most(n: int) -> None:
    for first in {1, max(1, n // 16), n}:
        stops = [*looks(n, first), n]
        assert stops == sorted(set(stops))
        assert all(b - a <= math.ceil(n / 4) for a, b in pairwise(stops))
        assert stops[0] == first


# Races over tables of scores


class Table(NamedTuple):
    """Scores of members and of the parent on each example, and how likely each is to change."""

    scores: Tensor  # (members, n)
    parent: Tensor  # (n,)
    doubt: Tensor  # (n,)


def predictions(change: float, gain: float, n: int, by: torch.Generator, steep: float = 4) -> Table:
    """Right or wrong: members change a share of predictions, mostly the doubtful ones.

    Args:
        change: share of the predictions that a member changes.
        gain: how far gains outweigh losses, in [-1, 1].
        n: examples.
        by: source of the numbers.
        steep: how much likelier doubtful ones are to change.
    """
    parent, doubt = (uniform(n, by=by) < 0.6).double(), uniform(n, by=by)
    likely = change * steep * (-steep * doubt).exp() / (1 - math.exp(-steep))
    likely = likely * torch.where(parent == 1, (1 - gain) / 2 / 0.6, (1 + gain) / 2 / 0.4)
    flips = uniform(MEMBERS, n, by=by) < likely
    return Table(torch.where(flips, 1 - parent, parent), parent, doubt)


def losses(degrees: int, drift: float, n: int, by: torch.Generator) -> Table:
    """Losses: their differences follow Student's t, members differ a little in their mean."""
    parent = uniform(n, by=by).log()
    chi = normal(degrees, MEMBERS, n, by=by).square().mean(0)
    changes = normal(MEMBERS, n, by=by) / chi.sqrt() + 0.05 * normal(MEMBERS, 1, by=by) + drift
    return Table(parent + changes, parent, parent)


def skewed(width: float, n: int, by: torch.Generator) -> Table:
    """A few large gains, and many small losses."""
    parent = uniform(n, by=by).log()
    changes = (width * normal(MEMBERS, n, by=by)).exp() - math.exp(width**2 / 2)
    return Table(parent + changes + 0.05 * normal(MEMBERS, 1, by=by), parent, parent)


CASES: dict[str, Callable[[int, torch.Generator], Table]] = {
    "1% of predictions": lambda n, by: predictions(0.01, 0.0, n, by),
    "5% of predictions": lambda n, by: predictions(0.05, 0.0, n, by),
    "5%, mostly losses": lambda n, by: predictions(0.05, -0.4, n, by),
    "30%, mostly losses": lambda n, by: predictions(0.3, -0.4, n, by),
    "losses, near normal": lambda n, by: losses(30, 0.0, n, by),
    "losses, heavy tails": lambda n, by: losses(2, 0.0, n, by),
    "losses that grow, heavy tails": lambda n, by: losses(2, -0.2, n, by),
    "losses, rare gains": lambda n, by: skewed(1.0, n, by),
}


def decide(scores: Sequence[float], parent: float, beats_parent: bool) -> int | None:
    finite = [i for i, score in enumerate(scores) if math.isfinite(score)]
    best = max(finite, key=lambda i: scores[i])
    return best if not beats_parent or scores[best] > parent else None


def run_race(
    table: Table, beats_parent: bool, by: torch.Generator, fails: Callable[[int, int], bool]
) -> list[Scores]:
    """Race over a table; `fails` says of a member, and of the examples seen so far, if it does."""
    n = len(table.parent)
    first = math.ceil(n / 16)
    order = table.doubt.argsort()
    strata = Strata(order, 16, by)
    stops = looks(n, first)

    def score(some: Sequence[int], numbers: Tensor) -> tuple[list[Scores], Tensor]:
        rows = numbers.flip(0)  # in another order than was asked for
        found = []
        for i in some:
            values = table.scores[i, rows]
            failed = fails(i, len(strata.rows))
            found.append(Scores.failure("no") if failed else Scores(float(values.mean()), values))
        return found, rows

    race = Race(
        Scores(float(table.parent.mean()), table.parent),
        strata,
        score,
        beats_parent=beats_parent,
        within_one=bool(((table.parent == 0) | (table.parent == 1)).all()),
        z=quantile(0.01 / 2 / len(stops)),
    )
    return race.run(len(table.scores), [*stops, n])


def never(i: int, seen: int) -> bool:
    return False


def check_outcomes(table: Table, outcomes: list[Scores], beats_parent: bool) -> bool:
    """Check what must hold of every race; say whether it decided as full scoring does."""
    n, parent = len(table.parent), float(table.parent.mean())
    scores = [outcome.value for outcome in outcomes]
    whole = [i for i, outcome in enumerate(outcomes) if outcome.seen is None]
    assert whole or beats_parent
    for i, outcome in enumerate(outcomes):
        if outcome.seen is None:
            assert outcome.per_example is not None
            assert torch.equal(outcome.per_example, table.scores[i])
            assert scores[i] == float(table.scores[i].mean())
        else:
            assert 0 < outcome.seen < n
            assert scores[i] < max((scores[k] for k in whole), default=parent)
    wanted = decide(table.scores.mean(1).tolist(), parent, beats_parent)
    return decide(scores, parent, beats_parent) == wanted


def count_agreements(name: str, beats_parent: bool, generations: int, n: int) -> int:
    by = generator(len(name) + beats_parent)
    tables = (CASES[name](n, by) for _ in range(generations))
    return sum(
        check_outcomes(table, run_race(table, beats_parent, by, never), beats_parent)
        for table in tables
    )


@pytest.mark.parametrize("beats_parent", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_decides_as_full_scoring_does(name: str, beats_parent: bool) -> None:
    assert count_agreements(name, beats_parent, 12, 600) >= 11


@pytest.mark.slow
@pytest.mark.parametrize("beats_parent", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_decides_as_full_scoring_does_in_thousands_of_generations(
    name: str, beats_parent: bool
) -> None:
    assert count_agreements(name, beats_parent, 1000, 2000) >= 990


def seen_share(table: Table, outcomes: list[Scores]) -> float:
    n = len(table.parent)
    return sum(n if o.seen is None else o.seen for o in outcomes) / (n * len(outcomes))


def test_children_that_lose_clearly_see_little() -> None:
    by = generator(5)
    table = predictions(0.3, -0.4, 5000, by)
    assert seen_share(table, run_race(table, True, by, never)) < 0.2


def test_few_changes_are_found_where_the_parent_was_in_doubt() -> None:
    by = generator(6)
    table = predictions(0.01, 0.0, 5000, by, steep=30)
    known = seen_share(table, run_race(table, True, by, never))
    unknown = table._replace(doubt=uniform(5000, by=by))
    assert known < 0.6 * seen_share(unknown, run_race(unknown, True, by, never))


@pytest.mark.parametrize("beats_parent", [True, False])
def test_of_equals_the_first_wins(beats_parent: bool) -> None:
    by = generator(7)
    table = predictions(0.1, 0.3, 800, by)
    best = int(table.scores.mean(1).argmax())
    twins = table._replace(scores=torch.cat([table.scores, table.scores[best : best + 1]]))
    outcomes = run_race(twins, beats_parent, by, never)
    assert decide([o.value for o in outcomes], 0.0, beats_parent) == best
    assert outcomes[-1].seen is None


def test_nobody_beats_a_parent_without_mistakes() -> None:
    table = Table(torch.ones(4, 320), torch.ones(320), torch.arange(320.0))
    table = Table(*(part.double() for part in table))
    outcomes = run_race(table, True, generator(), never)
    assert [outcome.seen for outcome in outcomes] == [20] * 4
    assert all(outcome.value < 1 for outcome in outcomes)


def test_a_member_that_cannot_make_up_for_its_losses_is_dropped() -> None:
    """The parent makes two mistakes, and the members three others: no statistics are needed."""
    parent, scores = torch.ones(320).double(), torch.ones(4, 320).double()
    parent[318:], scores[:, 318:], scores[:, :3] = 0, 1, 0
    outcomes = run_race(Table(scores, parent, torch.arange(320.0)), True, generator(), never)
    assert all(outcome.seen is not None for outcome in outcomes)


@pytest.mark.parametrize("beats_parent", [True, False])
@pytest.mark.parametrize("when", [0, 1, 100, 250, 399])
def test_who_fails_is_out_and_those_that_it_beat_are_back(beats_parent: bool, when: int) -> None:
    """The best fails late: what it had outrun must not be taken for lost."""
    by = generator(8)
    scores = predictions(0.05, 0.0, 800, by).scores
    parent = scores[0].clone()
    scores[3] = (scores[3] + (uniform(800, by=by) < 0.5)).clamp(max=1)  # far ahead
    table = Table(scores, parent, uniform(800, by=by))
    outcomes = run_race(table, beats_parent, by, lambda i, seen: i == 3 and seen > when)
    assert outcomes[3].failed
    assert outcomes[3].seen is not None
    without = scores.mean(1).tolist()
    without[3] = math.nan
    wanted = decide(without, float(parent.mean()), beats_parent)
    raced = [outcome.value for outcome in outcomes]
    assert decide(raced, float(parent.mean()), beats_parent) == wanted


def test_all_may_fail() -> None:
    table = predictions(0.05, 0.0, 800, generator())
    outcomes = run_race(table, False, generator(), lambda i, seen: seen > 300)
    assert all(math.isnan(outcome.value) for outcome in outcomes)
    assert all(outcome.failed for outcome in outcomes)


# Rows of batches

X = normal(700, 6, by=generator()).float()
Y = (X @ normal(6, 3, by=generator(1)).float()).argmax(1)
SHARED = torch.ones(3)
FORMS: dict[str, Callable[[Tensor, Tensor], tuple[Any, Any]]] = {
    "tensor": lambda x, y: (x, y),
    "several inputs": lambda x, y: ((x, x[:, :2]), y),
    "dictionary": lambda x, y: ({"x": x, "mask": (x > 0), "scale": SHARED, "flag": True}, y),
    "one for all of a batch": lambda x, y: ((x, torch.full((3,), float(len(y)))), y),
    "no targets": lambda x, y: ({"x": x, "labels": y}, None),
    "targets of several kinds": lambda x, y: (x, [y, {"more": y + 1}]),
}
SIZES = (300, 300, 100)


def first_tensor(value: Any) -> Tensor:
    while not isinstance(value, Tensor):
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_batches_of_any_form(form: str) -> None:
    parts = zip(X.split(SIZES), Y.split(SIZES), strict=True)
    examples = Examples(tuple(FORMS[form](x, y) for x, y in parts), 700)
    rows = torch.randperm(700, generator=generator())[:450]
    taken, numbers = Rows(examples).take(rows)
    assert sorted(numbers.tolist()) == sorted(rows.tolist())
    assert len(taken) == 450
    assert torch.equal(torch.cat([first_tensor(inputs) for inputs, _ in taken]), X[numbers])
    place = 0
    for inputs, targets in taken:
        size = len(first_tensor(inputs))
        assert size <= 300
        expected = FORMS[form](X[numbers[place : place + size]], Y[numbers[place : place + size]])
        if form == "one for all of a batch":
            owners = torch.bucketize(
                numbers[place : place + size], torch.tensor([300, 600]), right=True
            )
            assert len(owners.unique()) == 1, "such batches cannot be mixed"
            expected[0][1].fill_(SIZES[int(owners[0])])
        _assert_equal((inputs, targets), expected)
        place += size
    assert place == 450


def _assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, tuple | list):
        for one, other in zip(a, b, strict=True):
            _assert_equal(one, other)
    else:
        assert a == b


def test_batches_of_other_shapes_are_not_mixed() -> None:
    batches = ((torch.zeros(40, 5), torch.zeros(40)), (torch.zeros(60, 7), torch.zeros(60)))
    taken, numbers = Rows(Examples(batches, 100)).take(torch.arange(0, 100, 5))
    assert [inputs.shape for inputs, _ in taken] == [(8, 5), (12, 7)]
    assert numbers.tolist() == list(range(0, 100, 5))


def test_two_examples_in_dictionaries() -> None:
    """A pair is not taken for a list with one thing for each of two examples."""
    batch = (({"x": torch.zeros(2, 3)}, {"x": torch.ones(2, 3)}), torch.zeros(2))
    taken, _ = Rows(Examples((batch,), 2)).take(torch.tensor([1]))
    ((left, right), _) = taken.batches[0]
    assert left["x"].shape == right["x"].shape == (1, 3)


def test_a_list_of_texts_cannot_be_taken_apart() -> None:
    batch = (["a", "b", "c"], torch.zeros(3))
    with pytest.raises(CannotScore, match="a list of 3 str"):
        Rows(Examples((batch,), 3))


# The engine, on networks


class TwoInputs(nn.Module):
    """A small network with BatchNorm, dropout and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 12), nn.Linear(6, 12)
        self.two.weight = self.one.weight
        self.norm, self.drop = nn.BatchNorm1d(12), nn.Dropout(0.5)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        hidden = self.norm(self.one(x) + self.two(x * scale).tanh())
        out: Tensor = self.head(self.drop(hidden.relu()))
        return out


def network(seed: int = 0) -> TwoInputs:
    return copy.deepcopy(_trained(seed))


@cache
def _trained(seed: int) -> TwoInputs:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = TwoInputs()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(X[:200]), Y[:200]).backward()
            optimizer.step()
    model.zero_grad()
    return model


# sorted by class: the first of them are no sample of all
ORDER = Y.argsort(stable=True)
BATCHES = list(zip(X[ORDER].split(150), Y[ORDER].split(150), strict=True))
DICTIONARIES = [{"x": x, "scale": torch.tensor(0.5), "labels": y} for x, y in BATCHES]
BATCHES_IN: dict[str, Any] = {"tuples": BATCHES, "dictionaries": DICTIONARIES}
OTHERS = [(X[:80], Y[:80])]

METRICS: dict[str, Any] = {
    "accuracy": "accuracy",
    "neg-loss": "neg-loss",
    "callable": lambda outputs, targets: -(outputs.softmax(1)[:, 0] - (targets == 0).float()).abs(),
}
SEARCHES: dict[str, Any] = {
    "improves": lambda: {"strategy": RandomMutation(0.05, population=12)},
    "loses": lambda: {"strategy": RandomMutation(0.5, population=12)},
    "always": lambda: {"strategy": RandomMutation(0.05, population=12), "accept": Always()},
    "by phase": lambda: {
        "strategy": RandomMutation(0.05, population=12),
        "accept": Improves(every="phase"),
    },
    "random search": lambda: {
        "strategy": RandomSearch(0.1, population=12),
        "accept": Always(),
    },
    "head": lambda: {"strategy": RandomMutation(0.2, population=12), "space": Only("head")},
}


def evolve(
    name: str, engine: Any, metric: Any = "accuracy", batches: Any = BATCHES, **more: Any
) -> tuple[nn.Module, list[Record]]:
    model = network()
    search = Evolution(model, engine=engine, seed=4, **SEARCHES[name]())
    fitness = Fitness(model, batches, metric)
    if more.pop("accept_on", False):
        more["accept_on"] = Fitness(model, OTHERS, metric)
    return model, search.evolve(fitness, generations=4, **more)


@cache
def in_full(
    name: str = "improves", metric: str = "accuracy", form: str = "tuples"
) -> tuple[nn.Module, list[Record]]:
    """Evolve with every member scored on all examples; many races are held against one."""
    return evolve(name, "inplace", METRICS[metric], BATCHES_IN[form])


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        (name, metric)
        for i, name in enumerate(SEARCHES)
        for j, metric in enumerate(METRICS)
        if name == "improves" or (i + j) % 3 == 0
    ],
)
def test_weights_are_those_of_full_scoring(name: str, metric: str) -> None:
    full, expected = in_full(name, metric)
    raced, records = evolve(name, "racing", METRICS[metric])
    assert_same_weights(full, raced)
    for a, b in zip(expected, records, strict=True):
        assert (a.parent, a.accepted) == (b.parent, b.accepted)
        if a.accepted:
            assert a.candidate == b.candidate
            assert max(a.scores) == max(b.scores)
        assert b.sample_forwards <= a.sample_forwards
    assert sum(r.sample_forwards for r in records) < sum(r.sample_forwards for r in expected)


@pytest.mark.parametrize("over", [InPlace(), Vmap(chunk=5)])
@pytest.mark.parametrize("form", BATCHES_IN)
def test_other_forms_of_batches_and_other_engines_below(over: Any, form: str) -> None:
    full, _ = in_full(form=form)
    raced, _ = evolve("improves", Racing(over=over), batches=BATCHES_IN[form])
    assert_same_weights(full, raced)


def test_where_others_decide_the_best_is_scored_in_full() -> None:
    full, expected = evolve("improves", "inplace", accept_on=True)
    raced, records = evolve("improves", "racing", accept_on=True)
    assert_same_weights(full, raced)
    assert [r.candidate for r in records] == [r.candidate for r in expected]
    assert [max(r.scores) for r in records] == [max(r.scores) for r in expected]


def test_where_all_lose_no_candidate_is_scored_and_the_attempt_counts() -> None:
    """The rule is not asked, which would want the score of each example."""
    model = network()
    runs = {}
    for engine in ("inplace", "racing"):
        search = Evolution(
            model,
            RandomMutation(3.0, population=6),
            accept=Ladder(every="generation"),
            engine=engine,
        )
        with pytest.warns(UserWarning, match="examples that selected the candidate"):
            (record,) = search.evolve(Fitness(model, BATCHES))
        runs[engine] = record, search.attempts
    (full, tried), (raced, tried_by_racing) = runs["inplace"], runs["racing"]
    assert not full.accepted
    assert not raced.accepted
    assert tried == tried_by_racing == 1
    assert raced.sample_forwards < 700 * 7 / 3
    assert raced.candidate is not None
    assert raced.candidate < raced.parent


def test_each_forward_is_counted() -> None:
    model = network()
    forwarded = []
    fitness = Fitness(model, BATCHES)
    search = Evolution(model, RandomMutation(0.05, population=12), engine="racing", seed=4)
    search.evolve(fitness, 1)  # the engine is checked
    handle = model.register_forward_hook(lambda m, i, o: forwarded.append(len(o)))
    (record,) = search.evolve(fitness, 1)
    handle.remove()
    checking = forwarded[5]  # the parent's batches are five, and then it is checked on a few
    assert record.sample_forwards == sum(forwarded) - checking < 13 * 700


def test_resuming_gives_the_same_bits() -> None:
    whole, records = evolve("improves", "racing")
    model = network()
    first = Evolution(model, engine="racing", seed=4, **SEARCHES["improves"]())
    begun = first.evolve(Fitness(model, BATCHES), 2)
    again = copy.deepcopy(model)
    second = Evolution(again, engine="racing", seed=99, **SEARCHES["improves"]())
    second.load_state_dict(first.state_dict())
    rest = second.evolve(Fitness(again, BATCHES), 2)
    assert_same_weights(whole, again)
    assert [r.scores for r in records] == [r.scores for r in (*begun, *rest)]
    assert [r.sample_forwards for r in records] == [r.sample_forwards for r in (*begun, *rest)]


def test_scores_of_the_dropped_are_near_and_below_the_best() -> None:
    _, (full, *_) = in_full()
    _, (raced, *_) = evolve("improves", "racing")
    pairs = list(zip(full.scores, raced.scores, strict=True))
    assert any(a != b for a, b in pairs)
    assert all(abs(a - b) < 0.05 for a, b in pairs)
    assert all(b < max(full.scores) for a, b in pairs if a != b)


def opening(session: type[OneByOne]) -> InPlace:
    """An engine whose sessions are of this type."""

    class Opening(InPlace):
        def open(self, workspace: Workspace, evaluator: Evaluator) -> OneByOne:
            return session(self, workspace, evaluator)

    return Opening()


def opened(
    model: nn.Module, metric: str, seed: int = 0, generation: int = 0
) -> tuple[Races, Round]:
    evaluator = Evaluator(Fitness(model, BATCHES, metric), ModuleState(model))
    slots = slots_of_module(model)
    workspace = Workspace(AllWeights(), AllWeights().open(slots), slots.tensors)
    round = evaluator.round(seed, generation, Competition(beats_parent=True))
    return Racing().open(workspace, evaluator), round


def test_all_classes_are_seen_at_the_first_look() -> None:
    model = network()
    seen: list[Tensor] = []

    class Watching(OneByOne):
        def score(self, round: Round, members: Any) -> list[Scores]:
            assert round.examples is not None
            seen.append(torch.cat([targets for _, targets in round.examples]))
            return super().score(round, members)

    mutation = RandomMutation(0.05, population=4)
    Evolution(model, mutation, engine=Racing(over=opening(Watching))).evolve(
        Fitness(model, BATCHES)
    )
    first = seen[1]  # the first was the check
    assert len(first) == math.ceil(700 / 16)
    assert set(first.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("rule", [Always(), Improves()])
def test_no_more_than_a_quarter_is_copied_at_a_time(rule: Any) -> None:
    """The winner's rest is not gathered at once either; in memory examples may be large."""
    sizes: list[int] = []

    class Watching(OneByOne):
        def score(self, round: Round, members: Any) -> list[Scores]:
            sizes.append(round.cost)
            assert round.examples is not None
            assert max(len(targets) for _, targets in round.examples) <= 150
            return super().score(round, members)

    model = network()
    mutation = RandomMutation(0.05, population=6)
    search = Evolution(model, mutation, accept=rule, engine=Racing(over=opening(Watching)))
    search.evolve(Fitness(model, BATCHES))
    assert len(sizes) > 3
    assert max(sizes) <= 700 / 4


@pytest.mark.parametrize("metric", ["accuracy", "neg-loss"])
def test_groups_are_of_like_margins_or_of_like_scores(metric: str) -> None:
    model = network().eval()
    races, round = opened(model, metric)
    parent = races.parent(round, ())
    assert parent.per_example is not None
    strata = races.strata(round, parent.per_example)
    first, second, *others = torch.arange(len(strata.sizes))
    assert others
    low = strata.draw(torch.where(torch.arange(len(strata.sizes)) == first, strata.sizes, 0))
    high = strata.draw(torch.where(torch.arange(len(strata.sizes)) == second, strata.sizes, 0))
    rest = strata.draw(strata.left)
    logits = model(X[ORDER]).detach()
    least = logits.topk(2, 1).values.diff(dim=1).neg()[:, 0]
    if metric == "neg-loss":
        least = -F.cross_entropy(logits, Y[ORDER], reduction="none")
    assert len(low) + len(high) + len(rest) == 700
    assert least[low].max() <= least[high].min() + 1e-6
    assert least[high].max() <= least[rest].min() + 1e-6


def test_the_order_is_another_in_each_generation_and_the_same_again() -> None:
    orders = []
    for seed, generation in ((0, 0), (0, 0), (0, 1), (1, 0)):
        races, round = opened(network(), "accuracy", seed, generation)
        strata = races.strata(round, torch.zeros(700))
        orders.append(strata.draw(strata.sizes).tolist())
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


# No trace


def trace(model: nn.Module) -> dict[str, Any]:
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "addresses": [p.data_ptr() for p in (*model.parameters(), *model.buffers())],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "grads": [(p.requires_grad, p.grad) for p in model.parameters()],
        "streams": (random.getstate(), np.random.get_state()[1].tolist()),
        "stream": torch.get_rng_state(),
    }


def assert_no_trace(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("addresses", "modes", "hooks", "grads", "streams"):
        assert before[key] == after[key], key
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name
    assert torch.equal(before["stream"], after["stream"])


@pytest.mark.parametrize("call", [1, 5, 6, 7, 15, 20, 23, 30, 45, None])
def test_leaves_no_trace_whenever_it_stops(call: int | None) -> None:
    model = network().train()
    model.norm.eval()
    before = trace(model)
    calls = []

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(None)
        torch.rand(3), random.random(), np.random.rand()
        if len(calls) == call:
            raise KeyboardInterrupt
        return (outputs.argmax(1) == targets).float() * 0  # nothing is better

    search = Evolution(model, RandomMutation(0.5, population=6), engine="racing")
    with suppress(KeyboardInterrupt):
        search.evolve(Fitness(model, BATCHES, metric), 2)
    assert_no_trace(before, trace(model))
    assert len(calls) >= min(call or 45, 9)


def test_a_member_that_raises_fails_and_the_others_race_on() -> None:
    model = network()
    calls = []

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(None)
        if len(calls) == 5:  # parent, check, and three members
            raise ValueError("no")
        return (outputs.argmax(1) == targets).float()

    search = Evolution(model, RandomMutation(0.05, population=6), engine="racing")
    (record,) = search.evolve(Fitness(model, BATCHES, metric))
    assert record.failed == 1
    assert record.error == "ValueError: no"
    assert [math.isnan(score) for score in record.scores] == [i == 2 for i in range(6)]


# What it cannot take


class Cross(nn.Module):
    """Centers each batch: an example's output depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x - x.mean(0))
        return out


def plain(**options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: Fitness(model, BATCHES, **options)


CANNOT: dict[str, tuple[Callable[[nn.Module], Any], dict[str, Any], str]] = {
    "a bare callable": (
        lambda model: lambda: float(next(model.parameters()).detach().sum()),
        {},
        "a bare callable has no examples",
    ),
    "a metric of all examples at once": (
        plain(metric=lambda outputs, targets: outputs.mean()),
        {},
        "no score for each example",
    ),
    "training mode": (plain(mode="train"), {}, "in mode='train'"),
    "calibration": (plain(calibration=OTHERS), {}, "calibration= would estimate"),
    "a strategy that learns from all": (
        plain(),
        {"strategy": OpenAIES(0.05, population=4)},
        "learns from the score of every member",
    ),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_race_is_scored_in_place(name: str) -> None:
    make, options, why = CANNOT[name]
    options = {"strategy": RandomMutation(0.05, population=4), **options}
    found = []
    for engine in ("inplace", "racing"):
        model = network()
        search = Evolution(model, engine=engine, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            records = search.evolve(make(model), 2)
        found.append((model, records))
        told = [str(warning.message) for warning in caught]
        assert [why in text for text in told] == ([True] if engine == "racing" else [])
    assert_same_weights(found[0][0], found[1][0])
    assert [r.scores for r in found[0][1]] == [r.scores for r in found[1][1]]


def test_examples_that_depend_on_each_other_are_found_out() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Cross()
    found = []
    for engine in ("inplace", "racing"):
        own = copy.deepcopy(model)
        search = Evolution(own, RandomMutation(0.1, population=4), engine=engine)
        fitness = Fitness(own, BATCHES, "neg-loss")
        if engine == "racing":
            with pytest.warns(UserWarning, match="depends on the others in its batch"):
                search.evolve(fitness, 2)
        else:
            search.evolve(fitness, 2)
        found.append(own)
    assert_same_weights(*found)


def test_a_part_that_cannot_be_scored_alone_is_told() -> None:
    model = network()

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) < 700:
            raise ValueError("all or nothing")
        return (outputs.argmax(1) == targets).float()

    search = Evolution(model, RandomMutation(0.1, population=4), engine="racing")
    with pytest.warns(UserWarning, match="cannot be scored alone: ValueError: all or nothing"):
        search.evolve(Fitness(model, BATCHES, metric))


def test_a_parent_that_is_not_finite_is_nothing_to_race_against() -> None:
    model = network()
    model.head.bias.data[0] = math.inf
    races, round = opened(model, "neg-loss")
    mutation = RandomMutation(0.05, population=2)
    members = [mutation.member(races.workspace.genome, {}, 0, i, 0) for i in range(2)]
    scores = races.score(replace(round, parent=races.parent(round, members)), members)
    assert [one.seen for one in scores] == [None, None]


@pytest.mark.parametrize(
    ("model", "examples", "pays"),
    [
        (nn.Conv2d(1, 3, 3), 6300, True),
        (nn.Conv2d(1, 3, 3), 700, False),
        (nn.Linear(6, 3), 6300, False),
        (nn.Linear(600, 300), 6300, True),
    ],
)
def test_pays_with_many_examples_and_large_members(
    model: nn.Module, examples: int, pays: bool
) -> None:
    races, round = opened(model, "accuracy")
    assert races.pays(replace(round, examples=Examples((), examples))) == pays


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.0}, "confidence must lie between 0 and 1, got 1.0"),
        ({"confidence": 0}, "confidence must lie between 0 and 1, got 0"),
        ({"first": 0}, "a number of examples, got 0"),
        ({"first": 1.5}, "a share between 0 and 1 or a number of examples, got 1.5"),
        ({"first": True}, "got True"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Racing(**settings)


@pytest.mark.parametrize("first", [1, 50, 0.2, 5000])
def test_the_first_look_may_be_of_any_size(first: float | int) -> None:
    full, _ = in_full()
    raced, _ = evolve("improves", Racing(first=first))
    assert_same_weights(full, raced)


MARGINS: dict[str, tuple[Any, list[float] | None]] = {
    "classes": (torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.0, 4.5]]), [2.0, 0.5]),
    "one binary label": (torch.tensor([-2.0, 0.5]), [2.0, 0.5]),
    "a column": (torch.tensor([[-2.0], [0.5]]), [2.0, 0.5]),
    "positions": (torch.tensor([[[1.0, 5.0], [4.0, 4.0]]]), [2.0]),
    "whole numbers": (torch.tensor([[1, 4]]), None),
    "no tensor": ({"logits": torch.zeros(1, 2)}, None),
}


@pytest.mark.parametrize("name", MARGINS)
def test_margins(name: str) -> None:
    outputs, expected = MARGINS[name]
    found = margin(outputs)
    assert expected == (None if found is None else found.tolist())
