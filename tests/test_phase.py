"""Rules that judge a phase: accepted or taken back whole, resumed in the middle, interrupted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import Always, Evolution, Evolved, Fitness, OpenAIES, RandomMutation, Scores
from evostep.acceptance import Improves, Ladder, PairedTest, Rule
from evostep.engines.auto import Auto
from evostep.genome.slots import slots_of_module
from evostep.phase import Phase
from evostep.record import Record, Verdict
from evostep.scoring.calibration import Calibration
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.isolation import ModuleState
from evostep.spaces.base import Space
from evostep.spaces.span import Span
from evostep.spaces.weights import AllWeights, Only
from evostep.spaces.workspace import Workspace
from evostep.strategies.cmaes import CMAES
from evostep.strategies.random_search import RandomSearch
from evostep.strategies.snes import SNES

N = 60


class Says(Rule):
    """Accepts what it is told to, and keeps what it was asked."""

    every = "phase"

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Scores, Scores, int]] = []

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        self.asked.append((parent, candidate, attempts))
        return self.answers.pop(0)


def data(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, 5, generator=generator)
    targets = (inputs.sum(1) > 0).long()
    return list(zip(inputs.split(25), targets.split(25), strict=True))


def network(seed: int = 0, *, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(4) if norm else nn.Tanh()
    return nn.Sequential(nn.Linear(5, 4), middle, nn.Linear(4, 2))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fitnesses(model: nn.Module, **settings: Any) -> tuple[Fitness, Fitness]:
    first = Fitness(model, data(), "neg-loss", calibration=data(1), **settings)
    return first, Fitness(model, data(2), "neg-loss", **settings)


STRATEGIES: dict[str, Callable[[], Any]] = {
    "mutation": lambda: RandomMutation(0.2, population=3),
    "openai-es": lambda: OpenAIES(0.1, lr=0.05, population=4),
    "snes": lambda: SNES(0.2, population=5),
    "cmaes": lambda: CMAES(0.2, population=5),
    "random-search": lambda: RandomSearch(0.3, population=4),
}
SPACES: dict[str, Callable[[], Space]] = {
    "all": AllWeights,
    "head": lambda: Only("head"),
    "span": lambda: Span(groups="all"),
    "span-convex": lambda: Span(coefficients="convex"),
}


def take_turns(i: int, j: int) -> Any:
    """Leave two of the four spaces to each strategy, the other ones to the slow tests."""
    return () if (j - i) % 4 < 2 else pytest.mark.slow


def search_of(
    model: nn.Module, strategy: str, space: str, accept: Rule, seed: int = 3
) -> Evolution:
    search = Evolution(
        model, STRATEGIES[strategy](), space=SPACES[space](), accept=accept, seed=seed
    )
    for k in range(3 if space.startswith("span") else 0):
        search.remember()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    return search


# The law: accepted is `Always`, rejected is as if nothing had been.


@pytest.mark.parametrize(
    ("strategy", "space"),
    [
        pytest.param(strategy, space, marks=take_turns(i, j))
        for i, strategy in enumerate(STRATEGIES)
        for j, space in enumerate(SPACES)
    ],
)
def test_accepted_stands_where_always_leads_rejected_where_it_began(
    strategy: str, space: str
) -> None:
    model, free = network(), network()
    rule = Says(False, True)
    search = search_of(model, strategy, space, rule)
    twin = search_of(free, strategy, space, Always())
    fitness, accept_on = fitnesses(model)
    before = snapshot(model)
    records = search.evolve(fitness, 4, accept_on=accept_on)
    expected = twin.evolve(fitnesses(free)[0], 4)
    assert [r.scores for r in records] == [r.scores for r in expected]
    assert [r.accepted for r in records] == [r.accepted for r in expected]
    assert same(snapshot(model), before)
    assert [r.verdict is None for r in records] == [True, True, True, False]
    # what was judged is where `Always` led, and where the phase began
    parent, candidate, attempts = rule.asked[0]
    assert attempts == 1
    assert parent.value == accept_on()
    assert candidate.value == fitnesses(free)[1]()
    verdict = records[-1].verdict
    assert verdict == Verdict(0, 4, parent.value, candidate.value, False, None, 2 * N)
    # and again, accepted: the generation's number went on
    again = search.evolve(fitness, 2, accept_on=accept_on)
    assert [r.generation for r in again] == [4, 5]
    assert again[-1].verdict is not None
    assert again[-1].verdict.accepted
    assert accept_on() == rule.asked[1][1].value == again[-1].verdict.candidate
    assert rule.asked[1][2] == search.attempts == 2
    twin_of_bn = copy.deepcopy(model)
    Calibration(twin_of_bn, data(1))(twin_of_bn)
    assert same(snapshot(model), snapshot(twin_of_bn))


def test_after_a_rejection_learned_scales_stay_and_the_mean_goes_back() -> None:
    model = network()
    search = search_of(model, "snes", "all", Says(False))
    before = snapshot(model)
    fitness, accept_on = fitnesses(model)
    search.evolve(fitness, 3, accept_on=accept_on)
    assert same(snapshot(model), before)
    assert search._state is not None
    assert any(s.abs().max() > 0 for s in search._state["log_sigma"].values())


def test_momentum_is_damped_after_the_phase_and_only_if_it_was_accepted() -> None:
    for stops in (False, True):
        for answer in (False, True):
            model = network()
            base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            optimizer = Evolved(
                base, STRATEGIES["openai-es"](), accept=Says(answer), momentum=0.5, model=model
            )
            inputs, targets = data()[0]
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            momenta = [base.state[p]["momentum_buffer"].clone() for p in model.parameters()]
            fitness, accept_on = fitnesses(model)
            records = optimizer.evolve(
                fitness, 3, accept_on=accept_on, on_generation=lambda r, s=stops: s
            )
            assert len(records) == (1 if stops else 3)
            assert records[-1].verdict is not None
            for p, old in zip(model.parameters(), momenta, strict=True):
                expected = old * (0.5 if answer else 1.0)
                assert torch.equal(base.state[p]["momentum_buffer"], expected)


def test_a_phase_that_moved_nothing_is_not_judged() -> None:
    w = torch.zeros(2)
    rule = Says()
    search = Evolution({"w": w}, OpenAIES(0.1, lr=0.1, population=4), accept=rule)
    records = search.evolve(lambda: 1.0, 2)
    assert records[-1].verdict == Verdict(0, 2, None, None, False, None, 0)
    assert search.attempts == 0


# When the center has come to stay elsewhere.


class SaysOfEach(Says):
    every = "generation"


class Mover:
    """Evolves two weights, in a `Span` where `average` says what it opens at; notes its moves."""

    def __init__(self, rule: Rule, *, average: bool | None = None) -> None:
        self.w = torch.tensor([2.0, -1.0])
        space = AllWeights() if average is None else Span()
        self.search = Evolution(
            {"w": self.w}, OpenAIES(0.1, population=4), space=space, accept=rule, seed=1
        )
        self.best = torch.zeros(2)
        if average is not None:
            self.search.remember()
            self.w.mul_(2)
            self.best = 0.75 * self.w if average else self.w.clone()
        self.log: list[Any] = []

    def evolve(self, generations: int, *, stop: int | None = None) -> list[Record]:
        def fitness() -> float:
            return -float((self.w - self.best).norm())

        def handed_on(record: Record) -> bool:
            self.log.append((record.generation, record.moved, self.w.clone()))
            return record.generation == stop

        return self.search.evolve(
            fitness,
            generations,
            on_generation=handed_on,
            on_move=lambda: self.log.append("moved"),
        )


GENERATIONS: dict[str, tuple[Callable[[], Mover], list[int]]] = {
    "accepted and not": (lambda: Mover(SaysOfEach(True, False, False, True)), [1, 0, 0, 1]),
    "always": (lambda: Mover(Always()), [1, 1, 1, 1]),
    "opened at the average": (
        lambda: Mover(SaysOfEach(*[False] * 4), average=True),
        [1, 0, 0, 0],
    ),
    "opened at the average, and accepted": (
        lambda: Mover(SaysOfEach(False, True, False, False), average=True),
        [1, 1, 0, 0],
    ),
    "opened where it stood": (
        lambda: Mover(SaysOfEach(False, False, True, False), average=False),
        [0, 0, 1, 0],
    ),
}


@pytest.mark.parametrize("name", GENERATIONS)
def test_a_move_is_told_where_the_center_stays_elsewhere_before_the_record(name: str) -> None:
    make, expected = GENERATIONS[name]
    mover = make()
    settled = mover.w.clone()
    told: list[Any] = []
    records = mover.evolve(4)
    for entry in mover.log:
        told.append(entry)
        if entry == "moved":
            continue
        _, moved, now = entry
        assert moved == (not torch.equal(now, settled)) == ("moved" in told)
        settled, told = now, []
    assert told == []
    assert [record.moved for record in records] == [bool(moved) for moved in expected]


PHASES: dict[str, tuple[Callable[[], Mover], bool]] = {
    "accepted": (lambda: Mover(Says(True)), True),
    "rejected": (lambda: Mover(Says(False)), False),
    "opened at the average, accepted": (lambda: Mover(Says(True), average=True), True),
    "opened at the average, rejected": (lambda: Mover(Says(False), average=True), False),
}


@pytest.mark.parametrize("stop", [None, 1])
@pytest.mark.parametrize("name", PHASES)
def test_a_move_of_a_phase_is_told_once_with_its_verdict(name: str, stop: int | None) -> None:
    """A callback that stops has the record before the phase is judged; what is returned tells."""
    make, expected = PHASES[name]
    mover = make()
    start = mover.w.clone()
    records = mover.evolve(4, stop=stop)
    assert len(records) == (4 if stop is None else 2)
    assert [record.moved for record in records] == [False] * (len(records) - 1) + [expected]
    assert (not torch.equal(mover.w, start)) is expected
    assert mover.log.count("moved") == expected
    if expected:
        assert mover.log.index("moved") == len(mover.log) - (2 if stop is None else 1)
    assert mover.search.history == records


def test_a_phase_that_moved_nothing_tells_no_move() -> None:
    mover = Mover(Says())
    records = mover.search.evolve(lambda: 1.0, 2, on_move=lambda: pytest.fail("nothing moved"))
    assert [record.moved for record in records] == [False, False]


# One generation.


@pytest.mark.parametrize("space", ["all", "span"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_generation_is_a_pure_function_of_weights_state_number_and_seed(
    strategy: str, space: str
) -> None:
    def generation(number: int, seed: int, *, before: int = 0) -> tuple[Any, ...]:
        model = network()
        search = search_of(model, strategy, space, Always())
        slots = slots_of_module(model)
        entered = search.space.enter(slots, search._memory, None)
        genome = entered.open(slots)
        live = {name: slots.tensors[name] for name in entered.touched(slots)}
        workspace = Workspace(entered, genome, live)
        fitness = Fitness(model, data(), "neg-loss", mode="train", batches_per_generation=1)
        evaluator = Evaluator(fitness, ModuleState(model))
        for k in range(before):  # what was scored before is of no matter
            evaluator.score(evaluator.round(9, k))
        phase = Phase(
            STRATEGIES[strategy](),
            Always(),
            workspace,
            evaluator,
            None,
            Auto.of("inplace").open(workspace, evaluator),
            seed=seed,
            generation=number,
            attempts=0,
        )
        booked: list[tuple[Record, Any]] = []
        state = phase.strategy.init(genome)
        record = phase.generation(number, state, lambda *done: booked.append(done))
        phase.close()
        assert [one for one, _ in booked] == [record]
        state = booked[0][1]
        values = asdict(record)
        spent = values.pop("seconds"), values.pop("sample_forwards")
        assert spent[1] > 0
        return values, state, snapshot(model)

    first = generation(5, 3)
    torch.rand(7)
    again = generation(5, 3, before=3)
    assert first[0] == again[0]
    assert same(first[2], again[2])
    for other in (generation(6, 3), generation(5, 4)):
        assert other[0]["scores"] != first[0]["scores"]


def test_a_candidate_that_fails_goes_back() -> None:
    w = torch.zeros(2)
    search = Evolution({"w": w}, STRATEGIES["openai-es"](), accept=Says(True))
    failing = lambda: 1.0 if not w.any() else float("nan")  # noqa: E731
    (record,) = search.evolve(lambda: float(w[0]), accept_on=failing)
    assert record.verdict is not None
    assert not record.verdict.accepted
    assert record.verdict.error == "the fitness was nan"
    assert not w.any()


@pytest.mark.parametrize("second", [False, True])
def test_a_record_has_both_scores_on_the_examples_that_judge(second: bool) -> None:
    model = network()
    search = Evolution(model, STRATEGIES["openai-es"]())
    fitness, other = fitnesses(model)
    judge = other if second else fitness
    kept = []
    for _ in range(4):
        before = judge()
        (record,) = search.evolve(fitness, accept_on=other if second else None)
        assert record.judged_parent == pytest.approx(before)
        assert record.candidate is not None
        assert record.accepted == (record.candidate > record.judged_parent)
        assert (record.parent == record.judged_parent) != second
        kept.append(record.accepted)
    assert any(kept)


def test_where_no_candidate_is_judged_its_parent_is_not_either() -> None:
    w = torch.zeros(2)
    always = Evolution({"w": w}, STRATEGIES["openai-es"](), accept=Always())
    (record,) = always.evolve(lambda: float(w[0]))
    assert record.candidate is record.judged_parent is None


def test_records_can_be_written_as_json() -> None:
    model = network()
    fitness, accept_on = fitnesses(model)
    search = search_of(model, "openai-es", "all", Says(True))
    records = search.evolve(fitness, 2, accept_on=accept_on)
    lines = [json.loads(json.dumps(asdict(record))) for record in records]
    assert lines[0]["verdict"] is None
    assert lines[1]["verdict"]["accepted"] is True
    assert search.history == records


# Budget.


@pytest.mark.parametrize("space", ["all", "span"])
@pytest.mark.parametrize("budget", [1, 1000, 2500])
def test_every_forward_is_counted_and_judging_fits_in_the_budget(space: str, budget: int) -> None:
    model = network()
    search = search_of(model, "openai-es", space, Says(False))
    fitness, accept_on = fitnesses(model)
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    model.register_forward_pre_hook(count)
    records = search.evolve(fitness, 50, accept_on=accept_on, max_forwards=budget)
    total = sum(record.sample_forwards for record in records)
    assert total == seen == search.sample_forwards
    assert total >= budget
    assert total - records[-1].sample_forwards + 2 * N < budget or len(records) == 1
    assert records[-1].verdict is not None


# Resuming in the middle.


@pytest.mark.parametrize(
    ("strategy", "space", "every"),
    [
        pytest.param(strategy, space, ("phase", "generation")[(i + j) % 2], marks=take_turns(i, j))
        for i, strategy in enumerate(STRATEGIES)
        for j, space in enumerate(SPACES)
    ],
)
def test_resuming_in_the_middle_of_a_phase_gives_the_same_bits(
    strategy: str, space: str, every: Any, tmp_path: Path
) -> None:
    def rule() -> Rule:
        return Improves(every=every)

    model = network()
    search = search_of(model, strategy, space, rule())
    settings = {"batches_per_generation": 2}
    fitness, accept_on = fitnesses(model, **settings)

    def save(record: Any) -> None:
        state = [model.state_dict(), search.state_dict()]
        torch.save(state, tmp_path / f"{record.generation}.pt")

    search.evolve(fitness, 2, accept_on=accept_on)
    whole = search.evolve(fitness, 4, accept_on=accept_on, on_generation=save)
    whole += search.evolve(fitness, 1, accept_on=accept_on)
    for generation in (2, 3, 5):
        other = network(9)
        resumed = Evolution(
            other, STRATEGIES[strategy](), space=SPACES[space](), accept=rule(), seed=0
        )
        weights, state = torch.load(tmp_path / f"{generation}.pt", weights_only=True)
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
        f, a = fitnesses(other, **settings)
        records = resumed.evolve(f, 5 - generation, accept_on=a)
        records += resumed.evolve(f, 1, accept_on=a)
        pairs = zip(whole[generation - 1 :], records, strict=True)
        for one, two in pairs:
            assert {**asdict(one), "seconds": 0} == {**asdict(two), "seconds": 0}
        assert same(snapshot(model), snapshot(other))
        assert resumed.attempts == search.attempts
        assert resumed.sample_forwards == search.sample_forwards


def test_a_loaded_phase_is_saved_again_and_dropped_by_reset(tmp_path: Path) -> None:
    model = network()
    search = search_of(model, "snes", "span", Improves(every="phase"))
    states: list[Any] = []
    fitness, accept_on = fitnesses(model)
    search.evolve(
        fitness, 2, accept_on=accept_on, on_generation=lambda r: states.append(search.state_dict())
    )
    assert "phase" in states[0]
    assert "phase" not in states[1]  # judged before it was handed on
    assert "phase" not in search.state_dict()
    search.load_state_dict(states[0])
    assert search.state_dict()["phase"] is states[0]["phase"]
    search.reset()
    assert "phase" not in search.state_dict()


@pytest.mark.parametrize("space", ["all", "span"])
def test_going_on_at_other_weights_is_refused(space: str) -> None:
    model = network()
    search = search_of(model, "snes", space, Improves(every="phase"))
    states: list[Any] = []
    fitness, accept_on = fitnesses(model)
    search.evolve(
        fitness, 2, accept_on=accept_on, on_generation=lambda r: states.append(search.state_dict())
    )
    search.load_state_dict(states[0])
    before = snapshot(model)
    for _ in range(2):  # and it stays refused
        with pytest.raises(ValueError, match="load the weights saved with it"):
            search.evolve(fitness, accept_on=accept_on)
    assert same(snapshot(model), before)


def test_going_on_under_another_rule_is_refused() -> None:
    model = network()
    search = search_of(model, "snes", "span", Always())
    saved: list[Any] = []
    fitness, accept_on = fitnesses(model)
    search.evolve(
        fitness,
        2,
        on_generation=lambda r: saved.append((snapshot(model), search.state_dict())),
    )
    model.load_state_dict(saved[0][0])
    search.load_state_dict(saved[0][1])
    search.accept = Improves(every="phase")
    with pytest.raises(ValueError, match="under another rule of acceptance"):
        search.evolve(fitness, accept_on=accept_on)


# Interrupts.


class Clock:
    """Raises at the k-th forward of a model."""

    def __init__(self, model: nn.Module, k: int, error: type[BaseException]) -> None:
        self.left, self.error = k, error
        model.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error("now")


@pytest.mark.parametrize("space", ["all", "span"])
def test_an_interrupt_anywhere_in_a_phase_goes_back_to_where_it_began(space: str) -> None:
    reached_the_end = False
    for k in range(1, 400, 3):
        model = network()
        search = search_of(model, "openai-es", space, Says(True))
        fitness, accept_on = fitnesses(model)
        fitness.examples(), accept_on.examples()
        before = snapshot(model)
        clock = Clock(model, k, KeyboardInterrupt)
        try:
            records = search.evolve(fitness, 2, accept_on=accept_on)
        except KeyboardInterrupt:
            assert same(snapshot(model), before), k
            assert "phase" not in search.state_dict()
            clock.left = 0
            search.accept = Says(True)
            assert search.evolve(fitness, 1, accept_on=accept_on)  # and it works again
        else:
            reached_the_end = True
            assert records[-1].verdict is not None
            break
    assert reached_the_end


@pytest.mark.parametrize("space", ["all", "span"])
def test_an_exception_of_the_callback_goes_back_too(space: str) -> None:
    model = network()
    search = search_of(model, "openai-es", space, Says(True))
    before = snapshot(model)
    fitness, accept_on = fitnesses(model)

    def fail(record: Any) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        search.evolve(fitness, 3, accept_on=accept_on, on_generation=fail)
    assert same(snapshot(model), before)


def test_an_exception_after_the_verdict_leaves_what_was_accepted() -> None:
    model = network()
    search = search_of(model, "openai-es", "all", Says(True))
    fitness, accept_on = fitnesses(model)
    before = snapshot(model)

    def fail(record: Any) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        search.evolve(fitness, 1, accept_on=accept_on, on_generation=fail)
    assert not same(snapshot(model), before)
    assert accept_on() == search.history[-1].verdict.candidate  # type: ignore[union-attr]


# The real rules in a phase.


def test_paired_test_and_ladder_keep_what_gains_and_refuse_what_loses() -> None:
    for rule in (
        PairedTest(),
        PairedTest(kind="t"),
        PairedTest(kind="permutation"),
        Ladder(),
    ):
        model = network(norm=False)
        metric = "neg-loss" if getattr(rule, "kind", "") == "t" else "accuracy"
        fitness = Fitness(model, data(), metric)
        accept_on = Fitness(model, data(2), metric)
        strategy = OpenAIES(0.2, lr=0.05, population=16)
        search = Evolution(model, strategy, accept=rule)
        before = accept_on()
        search.evolve(fitness, 12, accept_on=accept_on)
        assert accept_on() > before, rule
        # examples on which the very opposite is right
        opposite = [(inputs, 1 - targets) for inputs, targets in data(2)]
        kept = snapshot(model)
        search.evolve(fitness, 3, accept_on=Fitness(model, opposite, metric))
        assert same(snapshot(model), kept), rule


@pytest.mark.parametrize(
    "rule",
    [
        PairedTest(every="generation"),
        PairedTest(every="generation", kind="t"),
        PairedTest(every="generation", kind="permutation"),
        Ladder(every="generation"),
    ],
)
def test_a_generation_can_be_judged_by_itself(rule: Rule) -> None:
    """Random search gains as much in one step as other strategies in a phase."""
    model = network(norm=False)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([0.0, 1.0]))
    fitness, accept_on = (Fitness(model, data(k), "accuracy") for k in (0, 2))
    strategy = RandomMutation(2.0, population=40, scale="absolute")
    search = Evolution(model, strategy, accept=rule)
    before = accept_on()
    records = search.evolve(fitness, 4, accept_on=accept_on)
    assert any(record.accepted for record in records)
    assert accept_on() > before + 0.1
    assert all(record.verdict is None for record in records)
    assert search.attempts == 4


def test_permutation_serves_a_metric_without_per_example_scores() -> None:
    model = network(norm=False)
    fitness, accept_on = (Fitness(model, data(k), "macro-f1") for k in (0, 2))
    search = Evolution(
        model,
        OpenAIES(0.2, lr=0.05, population=16),
        accept=PairedTest(kind="permutation", permutations=99),
    )
    before = accept_on()
    records = search.evolve(fitness, 10, accept_on=accept_on)
    assert records[-1].verdict is not None
    assert records[-1].verdict.accepted
    assert accept_on() > before + 0.1


@pytest.mark.parametrize("metric", ["macro-f1", lambda outputs, targets: float(outputs.mean())])
@pytest.mark.parametrize("rule", [PairedTest(), PairedTest(kind="t"), Ladder()])
def test_without_per_example_scores_weights_are_untouched(rule: Rule, metric: Any) -> None:
    model = network()
    fitness = Fitness(model, data(), "neg-loss")
    search = Evolution(model, STRATEGIES["openai-es"](), accept=rule)
    before = snapshot(model)
    with pytest.raises(ValueError, match="kind='permutation'"):
        search.evolve(fitness, 2, accept_on=Fitness(model, data(2), metric))
    assert same(snapshot(model), before)
    assert search.generation == (0 if metric == "macro-f1" else 2)  # known beforehand


@pytest.mark.parametrize("rule", [PairedTest(), Ladder()])
def test_judging_on_the_selection_examples_is_a_warning(rule: Rule) -> None:
    model = network(norm=False)
    fitness = Fitness(model, data(), "accuracy")
    search = Evolution(model, STRATEGIES["openai-es"](), accept=rule)
    for accept_on in (None, fitness):
        with pytest.warns(UserWarning, match="pass accept_on="):
            search.evolve(fitness, accept_on=accept_on)
