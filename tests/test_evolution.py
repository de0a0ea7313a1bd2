"""Evolution: budgets, records, failures, who decides, and exact resume."""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import (
    AllWeights,
    Always,
    Evolution,
    Fitness,
    Improves,
    Only,
    OpenAIES,
    RandomMutation,
    Record,
    Scores,
)
from evostep.acceptance import Rule
from evostep.strategies.base import Strategy

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()
BATCHES = [(X[:16], Y[:16]), (X[16:32], Y[16:32]), (X[32:], Y[32:])]


def probe() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def counting(model: nn.Module) -> list[int]:
    """A list that receives the size of each batch that goes forward."""
    sizes: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    return sizes


def numbers(record: Record) -> tuple[Any, ...]:
    """All of a record but the time, in a form in which NaN equals NaN."""
    return repr(record.scores), record.parent, record.candidate, record.accepted, record.generation


STRATEGIES: dict[str, Strategy] = {
    "mutation": RandomMutation(0.1, population=5),
    "openai-es": OpenAIES(0.1, lr=0.02, population=6),
    "article": OpenAIES(0.1, 0.02, 5, antithetic=False, shaping="z-score", scale="absolute"),
}
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)

# Resume


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def fitness_of(model: nn.Module) -> Fitness:
    return Fitness(model, BATCHES, "neg-loss", batches_per_generation=2, mode="train")


@each_strategy
@pytest.mark.parametrize("accept", [Improves(), Always()])
@pytest.mark.parametrize(
    "stop", [1, 3, 5, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (2, 4))]
)
def test_resuming_at_any_generation_gives_the_same_bits(
    strategy: Strategy, accept: Rule, stop: int
) -> None:
    whole = probe()
    never_stopped = Evolution(whole, strategy, accept=accept, seed=4)
    saved: list[Any] = []

    def save(record: Record) -> None:  # in the middle of evolve
        if record.generation + 1 == stop:
            saved.append((weights(whole), through_a_file(never_stopped.state_dict())))

    records = never_stopped.evolve(fitness_of(whole), 6, on_generation=save)
    resumed_model = probe()
    resumed_model.load_state_dict(saved[0][0])
    resumed = Evolution(resumed_model, strategy, accept=accept, seed=99)
    resumed.load_state_dict(saved[0][1])
    torch.rand(11)
    rest = resumed.evolve(fitness_of(resumed_model), 6 - stop)
    assert [numbers(r) for r in rest] == [numbers(r) for r in records[stop:]]
    assert equal(weights(resumed_model), weights(whole))
    assert resumed.state_dict() == never_stopped.state_dict()


@each_strategy
def test_one_phase_or_several_is_all_the_same(strategy: Strategy) -> None:
    a, b = probe(), probe()
    one, several = Evolution(a, strategy), Evolution(b, strategy)
    one.evolve(fitness_of(a), 6)
    for generations in (1, 0, 3, 2):
        several.evolve(fitness_of(b), generations)
    assert equal(weights(a), weights(b))
    assert [numbers(r) for r in one.history] == [numbers(r) for r in several.history]


def test_the_users_random_streams_are_what_a_checkpoint_in_the_middle_sees() -> None:
    model = probe()
    before = torch.get_rng_state()
    seen: list[Tensor] = []
    Evolution(model, STRATEGIES["mutation"]).evolve(
        fitness_of(model), 3, on_generation=lambda _: seen.append(torch.get_rng_state())
    )
    assert len(seen) == 3
    assert all(torch.equal(state, before) for state in seen)


def test_seeds_differ() -> None:
    models = [probe(), probe()]
    for seed, model in enumerate(models):
        Evolution(model, STRATEGIES["openai-es"], seed=seed, accept=Always()).evolve(
            fitness_of(model)
        )
    assert not equal(weights(models[0]), weights(models[1]))


def test_the_order_of_parameters_in_the_model_does_not_matter() -> None:
    """Noise follows names, so tensors given in another order evolve the same."""
    results = []
    for order in (("a", "b"), ("b", "a")):
        tensors = {name: torch.ones(3) for name in order}
        search = Evolution(tensors, STRATEGIES["article"], accept=Always())
        search.evolve(lambda t=tensors: -float(t["a"].norm() + 2 * t["b"].norm()), 3)  # type: ignore[misc]
        results.append(tensors)
    assert all(torch.equal(results[0][name], results[1][name]) for name in ("a", "b"))


STATES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda s: s.pop("generation"), "lacks generation"),
    (lambda s: s.pop("strategy"), "lacks strategy"),
    (lambda s: (s.pop("names"), s.pop("state")), "lacks names, state"),
    (lambda s: s.update(strategy="SNES"), "saved by SNES, this evolution has RandomMutation"),
    (lambda s: s.update(names=["0.weight", "other"]), "other names .other where.*0.bias"),
    (lambda s: s["names"].pop(), "other names .5 where this evolution has 6 tensors"),
    (lambda s: s.update(format=2), "has the format 2, this version of evostep reads 1"),
]


@pytest.mark.parametrize(("spoil", "words"), STATES, ids=[words for _, words in STATES])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    spoil: Callable[[dict[str, Any]], Any], words: str
) -> None:
    model = probe()
    search = Evolution(model, STRATEGIES["mutation"])
    search.evolve(fitness_of(model), 2)
    before = search.state_dict()
    state = {**before, "names": list(before["names"]), "generation": 50}
    spoil(state)
    with pytest.raises(ValueError, match=words):
        search.load_state_dict(state)
    assert search.state_dict() == before


def test_a_state_of_before_it_had_a_number_is_still_read() -> None:
    model = probe()
    search = Evolution(model, STRATEGIES["openai-es"], accept=Always(), seed=4)
    search.evolve(fitness_of(model), 2)
    state, before = search.state_dict(), weights(model)
    assert state["format"] == 1
    old = {key: value for key, value in state.items() if key not in ("format", "engines")}
    found = []
    for saved in (state, old):
        model.load_state_dict(before)
        resumed = Evolution(model, STRATEGIES["openai-es"], accept=Always(), seed=99)
        resumed.load_state_dict(through_a_file(saved))
        found.append([numbers(record) for record in resumed.evolve(fitness_of(model), 2)])
    assert found[0] == found[1]
    assert resumed.state_dict()["format"] == 1


# Budgets


def test_zero_generations_do_nothing() -> None:
    model = probe()
    before, sizes = weights(model), counting(model)
    assert Evolution(model, STRATEGIES["mutation"]).evolve(fitness_of(model), 0) == []
    assert equal(before, weights(model))
    assert sizes == []


@pytest.mark.parametrize(
    ("strategy", "accept", "on_other", "per_generation"),
    [
        # parent and members; a mutation that is proposed has its score already
        (RandomMutation(0.1, population=5), Improves(), False, 6 * 40),
        (RandomMutation(0.1, population=5), Always(), False, 6 * 40),
        # a step is a new point: one more scoring decides on it
        (OpenAIES(0.1, population=4), Improves(), False, 6 * 40),
        (OpenAIES(0.1, population=4), Always(), False, 5 * 40),
        # deciding on other examples scores the parent there, too
        (RandomMutation(0.1, population=5), Improves(), True, 6 * 40 + 2 * 24),
        (OpenAIES(0.1, population=4), Improves(), True, 5 * 40 + 2 * 24),
    ],
)
def test_sample_forwards_are_what_really_went_forward(
    strategy: Strategy, accept: Rule, on_other: bool, per_generation: int
) -> None:
    model = probe()
    fitness = Fitness(model, BATCHES, "neg-loss")
    other = Fitness(model, BATCHES[:1] + BATCHES[2:], "neg-loss") if on_other else None
    sizes = counting(model)
    search = Evolution(model, strategy, accept=accept, engine="inplace")
    records = search.evolve(fitness, 3, accept_on=other)
    assert [record.sample_forwards for record in records] == [per_generation] * 3
    assert sum(sizes) == search.sample_forwards == 3 * per_generation


def test_sample_forwards_of_some_batches_are_theirs() -> None:
    model = probe()
    fitness, sizes = fitness_of(model), counting(model)
    records = Evolution(model, STRATEGIES["mutation"]).evolve(fitness, 4)
    assert sum(sizes) == sum(record.sample_forwards for record in records)
    assert {record.sample_forwards // 6 for record in records} <= {24, 32}


def test_calls_of_a_bare_fitness_are_counted() -> None:
    calls: list[None] = []

    def fitness() -> float:
        calls.append(None)
        return float(len(calls) % 3)

    search = Evolution({"w": torch.ones(2)}, OpenAIES(0.1, population=4))
    search.evolve(fitness, 3)
    assert search.sample_forwards == len(calls) == 3 * 6


@pytest.mark.parametrize(
    ("limit", "generations"), [(1, 1), (240, 1), (241, 2), (480, 2), (481, 3), (10**9, 4)]
)
def test_max_forwards_stops_at_the_generation_that_reaches_it(limit: int, generations: int) -> None:
    model = probe()
    search = Evolution(model, RandomMutation(0.1, population=5))
    search.evolve(Fitness(model, BATCHES))  # what went before does not count
    records = search.evolve(Fitness(model, BATCHES), 4, max_forwards=limit)
    assert len(records) == generations


def test_max_seconds_stops_after_the_generation_with_which_they_are_over() -> None:
    def fitness() -> float:
        time.sleep(0.01)
        return 0.0

    search = Evolution({"w": torch.ones(2)}, RandomMutation(0.1, population=4))
    assert len(search.evolve(fitness, 50, max_seconds=0.12)) in (1, 2, 3)
    assert len(search.evolve(fitness, 2, max_seconds=100)) == 2
    assert all(0.05 <= record.seconds < 5 for record in search.history)


def test_on_generation_sees_each_record_at_once_and_may_stop() -> None:
    w = torch.ones(2)
    search = Evolution({"w": w}, RandomMutation(0.1, population=4))
    seen: list[Record] = []

    def watch(record: Record) -> bool:
        assert search.history[-1] is record
        assert search.generation == record.generation + 1
        seen.append(record)
        return len(seen) == 3

    records = search.evolve(lambda: -float(w.norm()), 9, on_generation=watch)
    assert records == seen == search.history
    assert len(records) == 3


@pytest.mark.parametrize("value", [None, 0, 1, "yes"])
def test_only_true_stops(value: Any) -> None:
    search = Evolution({"w": torch.ones(2)}, RandomMutation(0.1, population=2))
    assert len(search.evolve(lambda: 0.0, 3, on_generation=lambda _: value)) == 3


def test_what_on_generation_raises_leaves_the_center_and_the_record() -> None:
    w = torch.ones(2)
    search = Evolution({"w": w}, RandomMutation(0.5, population=4))
    at: list[Tensor] = []

    def watch(record: Record) -> None:
        at.append(w.clone())
        if len(at) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.evolve(lambda: -float(w.norm()), 9, on_generation=watch)
    assert torch.equal(w, at[-1])
    assert search.generation == len(search.history) == 2


# Records


def test_records_say_what_happened() -> None:
    w = torch.tensor([2.0])
    scored: list[float] = []

    def fitness() -> float:
        scored.append(-abs(float(w)))
        return scored[-1]

    record = Evolution({"w": w}, OpenAIES(0.1, lr=0.1, population=4, scale="absolute")).evolve(
        fitness
    )[0]
    assert record.parent == scored[0] == -2.0
    assert record.scores == scored[1:5]
    assert record.candidate == scored[5]
    assert record.accepted == (scored[5] > -2.0)
    assert (record.generation, record.failed, record.error) == (0, 0, None)
    with pytest.raises(AttributeError):
        record.accepted = False  # type: ignore[misc]


def test_history_goes_on_over_phases() -> None:
    search = Evolution({"w": torch.ones(2)}, RandomMutation(0.1, population=2))
    search.evolve(lambda: 0.0, 2)
    search.evolve(lambda: 0.0, 3)
    assert [record.generation for record in search.history] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("accept", [Improves(), Always()])
def test_what_was_not_scored_has_no_candidate(accept: Rule) -> None:
    search = Evolution({"w": torch.ones(2)}, OpenAIES(0.1, population=4), accept=accept)
    assert search.evolve(lambda: 0.0)[0].candidate is None  # ties propose nothing
    assert not search.history[0].accepted


# Failures


class Unlucky:
    """Fails at some calls of each generation, in every way there is."""

    def __init__(self, w: Tensor, failing: dict[int, Any], calls: int) -> None:
        self.w, self.failing, self.per_generation, self.calls = w, failing, calls, 0

    def __call__(self) -> float:
        event = self.failing.get(self.calls % self.per_generation)
        self.calls += 1
        if isinstance(event, Exception):
            raise event
        return -float(self.w.norm()) if event is None else float(event)


def test_failed_members_are_counted_and_shown_and_rank_last() -> None:
    w = torch.tensor([3.0, -2.0])
    failing = {2: ArithmeticError("too hot"), 4: math.nan, 5: math.inf}
    fitness = Unlucky(w, failing, calls=9)
    records = Evolution({"w": w}, RandomMutation(0.3, population=8)).evolve(fitness, 5)
    for record in records:
        assert record.failed == 3
        assert record.error == "ArithmeticError: too hot"
        assert [math.isnan(score) for score in record.scores] == [i in (1, 3, 4) for i in range(8)]
    assert any(record.accepted for record in records)
    assert bool(w.isfinite().all())
    assert float(w.norm()) < 3.6


@each_strategy
@pytest.mark.parametrize("accept", [Improves(), Always()])
@pytest.mark.parametrize("event", [RuntimeError("no"), math.nan, math.inf, -math.inf])
def test_a_generation_of_failures_is_a_zero_step_and_a_warning(
    strategy: Strategy, accept: Rule, event: Any
) -> None:
    w = torch.tensor([3.0, -2.0])
    n = strategy.size
    fitness = Unlucky(w, dict.fromkeys(range(1, n + 1), event), calls=n + 1)
    search = Evolution({"w": w}, strategy, accept=accept)
    with pytest.warns(UserWarning, match=f"generation 0: the fitness failed for all {n} members"):
        record = search.evolve(fitness)[0]
    assert (record.failed, record.accepted) == (n, False)
    assert w.tolist() == [3.0, -2.0]


class Yes(Rule):
    """Accepts whatever it is shown, but wants to see its scores."""

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        return True


@pytest.mark.parametrize("accept", [Improves(), Yes()])
def test_a_candidate_that_fails_is_counted_and_not_accepted(accept: Rule) -> None:
    w = torch.tensor([3.0, -2.0])
    fitness = Unlucky(w, {5: RuntimeError("at the candidate")}, calls=6)
    record = Evolution({"w": w}, OpenAIES(0.1, population=4), accept=accept).evolve(fitness)[0]
    assert (record.failed, record.error) == (1, "RuntimeError: at the candidate")
    assert not record.accepted
    assert record.candidate is not None
    assert math.isnan(record.candidate)
    assert w.tolist() == [3.0, -2.0]


@each_strategy
def test_the_parents_exception_propagates_with_the_weights_intact(strategy: Strategy) -> None:
    w = torch.tensor([3.0, -2.0])
    search = Evolution({"w": w}, strategy)
    fitness = Unlucky(w, {0: ZeroDivisionError("a bug")}, calls=99)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        search.evolve(fitness, 3)
    assert w.tolist() == [3.0, -2.0]
    assert search.history == []
    assert search.generation == 0
    assert search.evolve(fitness)[0].generation == 0  # and it can go on


def test_a_warning_as_an_error_leaves_the_weights_intact() -> None:
    w = torch.tensor([3.0, -2.0])
    search = Evolution({"w": w}, RandomMutation(0.1, population=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="failed for all 2"):
            search.evolve(Unlucky(w, {1: math.nan, 2: math.nan}, calls=3))
    assert w.tolist() == [3.0, -2.0]
    assert len(search.history) == 1


# Who decides


class Recording(Rule):
    def __init__(self, verdict: bool = True) -> None:
        self.asked: list[tuple[Scores, Scores, int]] = []
        self.verdict = verdict

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        self.asked.append((parent, candidate, attempts))
        return self.verdict


def test_the_rule_meets_parent_and_candidate_on_the_same_examples() -> None:
    model, rule = probe(), Recording()
    search = Evolution(model, OpenAIES(0.5, population=8), accept=rule)
    fitness = Fitness(model, BATCHES, "accuracy", batches_per_generation=1)
    records = search.evolve(fitness, 3)
    for (parent, candidate, _), record in zip(rule.asked, records, strict=True):
        assert parent.value == record.parent
        assert candidate.value == record.candidate
        assert parent.per_example is not None
        assert candidate.per_example is not None
        assert parent.per_example.shape == candidate.per_example.shape
    assert [attempts for *_, attempts in rule.asked] == [1, 2, 3]


@pytest.mark.parametrize(("target", "moves"), [(0.0, False), (5.0, True)])
def test_accept_on_decides_instead_of_what_selected(target: float, moves: bool) -> None:
    """Selection pulls w from 1 to 5, acceptance to the target."""
    w = torch.tensor([1.0])
    search = Evolution({"w": w}, RandomMutation(0.1, population=8, scale="absolute"))
    records = search.evolve(
        lambda: -abs(float(w) - 5), 5, accept_on=lambda: -abs(float(w) - target)
    )
    assert all(max(record.scores) > record.parent for record in records)
    assert any(record.accepted for record in records) is moves
    assert (float(w) > 1.0) is moves
    child = 5 + max(records[0].scores)  # where the first proposed child stood
    assert records[0].candidate == pytest.approx(-abs(child - target), abs=1e-5)


def test_the_parent_is_scored_anew_where_acceptance_decides() -> None:
    model, rule = probe(), Recording(verdict=False)
    search = Evolution(model, RandomMutation(0.1, population=3), accept=rule)
    second = Fitness(model, BATCHES[2:], "neg-loss")
    before = second()
    record = search.evolve(Fitness(model, BATCHES[:2]), accept_on=second)[0]
    (parent, candidate, _), = rule.asked  # fmt: skip
    assert parent.value == before
    assert parent.value != record.parent
    assert candidate.value == record.candidate
    assert not record.accepted


# What is refused


def test_a_fitness_of_another_model_is_refused() -> None:
    model, copy = probe(), probe()
    search = Evolution(model, STRATEGIES["mutation"])
    for options in ({}, {"accept_on": fitness_of(copy)}):
        first = fitness_of(model if options else copy)
        with pytest.raises(ValueError, match=r"holds none of the tensors that evolve.*copy"):
            search.evolve(first, **options)  # type: ignore[arg-type]


def test_a_fitness_of_a_model_of_which_a_part_evolves_is_taken() -> None:
    model = probe()
    search = Evolution(model[3], RandomMutation(0.1, population=2))
    assert len(search.evolve(fitness_of(model))) == 1


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Evolution([torch.ones(2)], RandomMutation(0.1)), "Module or a dictionary.*list"),  # type: ignore[arg-type]
    (lambda: Evolution({"w": torch.ones(2)}, 0.1), "expected a strategy such as.*got 0.1"),  # type: ignore[arg-type]
    (
        lambda: Evolution({"w": torch.ones(2)}, RandomMutation),  # type: ignore[arg-type]
        "expected a strategy such as",
    ),
    (
        lambda: Evolution({"w": torch.ones(2)}, RandomMutation(0.1), space="head"),  # type: ignore[arg-type]
        "expected a space such as.*got 'head'",
    ),
    (
        lambda: Evolution({"w": torch.ones(2)}, RandomMutation(0.1), accept="improves"),  # type: ignore[arg-type]
        "expected a rule such as.*got 'improves'",
    ),
    (lambda: Evolution(nn.ReLU(), RandomMutation(0.1)), "nothing to evolve"),
    (lambda: Evolution({}, RandomMutation(0.1)), "nothing to evolve"),
    (
        lambda: Evolution({"w": torch.ones(2).long()}, RandomMutation(0.1)),
        "only floating-point tensors",
    ),
    (
        lambda: Evolution(probe(), RandomMutation(0.1), space=Only("4")),
        "'4' matches no parameter",
    ),
    (
        lambda: Evolution({"w": torch.ones(2)}, RandomMutation(0.1)).evolve(lambda: 0.0, -1),
        "generations must be >= 0, got -1",
    ),
    (
        lambda: Evolution({"w": torch.ones(2)}, RandomMutation(0.1)).evolve(0.5),  # type: ignore[arg-type]
        "Fitness or a callable, got float",
    ),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


# Spaces


def test_only_what_the_space_holds_moves() -> None:
    model = probe()
    before = weights(model)
    search = Evolution(model, STRATEGIES["openai-es"], space=Only("head"), accept=Always())
    search.evolve(Fitness(model, BATCHES, "neg-loss"), 2)
    changed = {
        name for name, value in weights(model).items() if not torch.equal(value, before[name])
    }
    assert changed == {"3.weight", "3.bias"}


def test_all_weights_move_where_nothing_else_is_said() -> None:
    model = probe()
    before = weights(model)
    search = Evolution(model, STRATEGIES["openai-es"], accept=Always())
    assert search.space == AllWeights()
    search.evolve(Fitness(model, BATCHES, "neg-loss"))
    names = dict(model.named_parameters())
    assert not any(torch.equal(value, before[name]) for name, value in names.items())


def test_examples_for_acceptance_that_nobody_asks_for_are_told() -> None:
    w = torch.ones(2)
    search = Evolution({"w": w}, RandomMutation(0.1, population=2), accept=Always())
    with pytest.warns(UserWarning, match="accept_on has no effect"):
        search.evolve(lambda: 0.0, accept_on=lambda: 0.0)


def test_a_center_without_a_finite_fitness_is_told_and_stays() -> None:
    w = torch.ones(2)
    search = Evolution({"w": w}, RandomMutation(0.1, population=2))
    with pytest.warns(UserWarning, match="weights as they stand is nan"):
        search.evolve(lambda: float("nan") if bool((w == 1).all()) else 1.0)
    assert bool((w == 1).all())
