"""Which engine scores, and what happens where it cannot or is wrong."""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from evostep import (
    AllWeights,
    Always,
    Evolution,
    Fitness,
    LowRank,
    Only,
    OpenAIES,
    RandomMutation,
    Record,
)
from evostep.engines import ENGINES
from evostep.engines.auto import Auto, Choice, agree
from evostep.engines.base import CannotScore, Engine, Session
from evostep.engines.inplace import InPlace, OneByOne
from evostep.engines.vmap import Vmap
from evostep.genome.point import Coordinates
from evostep.genome.slots import slots_of_module
from evostep.scoring.evaluator import Competition, Evaluator, Round
from evostep.scoring.isolation import ModuleState
from evostep.scoring.scores import Scores
from evostep.spaces.base import Space
from evostep.spaces.workspace import Workspace
from evostep.strategies.base import Strategy

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(9) % 3


# By name


def test_each_engine_has_its_own_name() -> None:
    assert list(ENGINES) == ["inplace", "lowrank", "vmap", "prefix", "racing", "workers"]
    for name, kind in ENGINES.items():
        assert Auto.of(name) == Auto((kind(),), asked_for=True)


def test_an_engine_with_settings_is_taken_as_it_is() -> None:
    engine = Vmap(chunk=3)
    assert Auto.of(engine) == Auto((engine,), asked_for=True)
    assert Auto.of(Auto((engine,))) == Auto((engine,)), "not asked for: it may be passed over"


def test_auto_chooses_among_all_but_the_plain_one_and_none_is_asked_for() -> None:
    auto = Auto.of("auto")
    assert [type(engine) for engine in auto.engines] == list(ENGINES.values())[1:]
    assert not auto.asked_for


def test_an_unknown_name_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'vmapp': did you mean vmap?"):
        Evolution(nn.Linear(2, 2), RandomMutation(0.1), engine="vmapp")


# Automatically


def convnet() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 3)]
    return nn.Sequential(*layers)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3))


ES, MUTATION = OpenAIES(0.1, population=4), RandomMutation(0.1, population=4)
THIN = OpenAIES(0.1, population=4, noise=LowRank(1))
CHOICES: dict[str, tuple[nn.Module, Space, Strategy, int, str]] = {
    "a small network": (mlp(), AllWeights(), ES, 100, "vmap"),
    "convolutions": (convnet(), AllWeights(), ES, 100, "inplace"),
    "low-rank noise, few examples": (convnet(), AllWeights(), THIN, 8, "lowrank"),
    "low-rank noise, many examples": (convnet(), AllWeights(), THIN, 1000, "inplace"),
    "late layers": (convnet(), Only("3"), ES, 100, "prefix"),
    "selection among many examples": (convnet(), AllWeights(), MUTATION, 2000, "racing"),
    "selection among few": (convnet(), AllWeights(), MUTATION, 200, "inplace"),
    "selection in late layers": (convnet(), Only("3"), MUTATION, 2000, "prefix"),
}


def opened(
    model: nn.Module, space: Space, strategy: Strategy, examples: int, make: Any = None
) -> tuple[Choice, Round, list[Coordinates]]:
    flat = isinstance(model[0], nn.Linear)  # type: ignore[index]
    x = torch.zeros(examples, 192) if flat else torch.zeros(examples, 3, 8, 8)
    data = [(x, torch.zeros(examples, dtype=torch.long))]
    fitness = make(model, data) if make else Fitness(model, data, "neg-loss")
    evaluator = Evaluator(fitness, ModuleState(model))
    round = evaluator.round(0, 0, Competition(True) if strategy.selects else None)
    slots = slots_of_module(model)
    genome = space.open(slots)
    live = {name: slots.tensors[name] for name in space.touched(slots)}
    members = [strategy.member(genome, {}, 0, i, 0) for i in range(4)]
    return Auto().open(Workspace(space, genome, live), evaluator), round, members


def chosen(session: Choice, round: Round, members: list[Coordinates]) -> str:
    return session._choose(round, members).engine.name


@pytest.mark.parametrize("name", CHOICES)
def test_auto_takes_the_fastest_that_can(name: str) -> None:
    model, space, strategy, examples, expected = CHOICES[name]
    assert chosen(*opened(model, space, strategy, examples)) == expected


@pytest.mark.parametrize("name", CHOICES)
def test_auto_does_not_look_at_the_clock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run must take the same engine."""
    for clock in ("perf_counter", "time", "monotonic", "process_time", "thread_time"):
        monkeypatch.setattr(time, clock, lambda: pytest.fail("it was asked for the time"))
    model, space, strategy, examples, expected = CHOICES[name]
    session, round, members = opened(model, space, strategy, examples)
    parent = session.parent(round, members)
    session.score(replace(round, parent=parent), members)
    monkeypatch.undo()
    assert chosen(session, round, members) == expected


def test_what_auto_passes_over_is_not_warned_of() -> None:
    model = convnet()
    fitness = Fitness(model, [(torch.randn(4, 3, 8, 8), Y[:4])], "neg-loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Evolution(model, ES).evolve(fitness)


# Engines that are wrong


@dataclass(frozen=True)
class Doubtful(Engine):
    """Scores as in place, and then changes what came out, or raises where it is told to."""

    name: ClassVar[str] = "doubtful"
    wrong: int | None = None  # the member whose score it changes
    raises: str = ""

    def open(self, workspace: Workspace, evaluator: Evaluator) -> Doubting:
        return Doubting(self, workspace, evaluator)


class Doubting(Session[Any]):
    def parent(self, *given: Any, **options: Any) -> Scores:
        if self.engine.raises == "before the parent":
            raise CannotScore("layer 'x' is odd")
        scores = super().parent(*given, **options)
        if self.engine.raises == "after the parent":
            raise CannotScore("layer 'x' is odd")
        return scores

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        if self.engine.raises == "at the members":
            raise CannotScore("layer 'x' is odd")
        scores = InPlace().open(self.workspace, self.evaluator).score(round, members)
        if self.engine.raises == "after the members":
            raise CannotScore("layer 'x' is odd")
        if self.engine.wrong is not None:
            scores[self.engine.wrong] = Scores(7.0)
        return scores


def evolve(
    engine: Any, generations: int = 3, **options: Any
) -> tuple[nn.Module, list[Record], list[str]]:
    torch.manual_seed(2)
    model = nn.Linear(6, 3)
    search = Evolution(model, ES, accept=Always(), seed=3, engine=engine)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = search.evolve(Fitness(model, [(X, Y)], "neg-loss"), generations, **options)
    return model, records, [str(one.message) for one in caught]


def assert_same_run(one: tuple[nn.Module, list[Record], Any]) -> None:
    model, records, _ = evolve("inplace")
    assert [r.scores for r in one[1]] == [r.scores for r in records]
    assert [r.parent for r in one[1]] == [r.parent for r in records]
    assert [r.sample_forwards for r in one[1]] == [r.sample_forwards for r in records]
    assert all(map(torch.equal, one[0].parameters(), model.parameters()))


@pytest.mark.parametrize(
    "raises", ["before the parent", "after the parent", "at the members", "after the members"]
)
def test_an_engine_that_cannot_is_told_once_and_members_are_scored_in_place(raises: str) -> None:
    found = evolve(Doubtful(raises=raises))
    assert found[2] == [
        "engine 'doubtful' cannot score these members, which are scored in place: layer 'x' is odd"
    ]
    assert_same_run(found)


def test_an_engine_that_is_wrong_is_found_out_on_first_use() -> None:
    found = evolve(Doubtful(wrong=-1))
    assert len(found[2]) == 1
    assert "it gave a member the score 7, in place it is -" in found[2][0]
    assert_same_run(found)


def test_an_engine_that_is_right_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    score = OneByOne.score

    def counted(self: OneByOne, round: Round, members: Any) -> list[Scores]:
        calls.append(len(members))
        return score(self, round, members)

    monkeypatch.setattr(OneByOne, "score", counted)
    found = evolve(Doubtful())
    assert calls == [4, 1, 4, 4]  # its own, and the check
    assert found[2] == []
    monkeypatch.undo()
    assert_same_run(found)


def test_one_member_more_goes_forward_where_an_engine_is_checked_and_is_not_counted() -> None:
    for engine, more in ((Doubtful(), len(X)), ("inplace", 0)):  # the plain one needs no check
        model = nn.Linear(6, 3)
        rows: list[int] = []
        model.register_forward_pre_hook(lambda m, inputs, rows=rows: rows.append(len(inputs[0])))
        search = Evolution(model, ES, accept=Always(), engine=engine)
        records = search.evolve(Fitness(model, [(X, Y)], "neg-loss"), 2)
        assert [record.sample_forwards for record in records] == [45, 45]
        assert sum(rows) == 90 + more


def test_checking_is_not_counted_and_a_resumed_run_gives_the_same() -> None:
    torch.manual_seed(2)
    model = nn.Linear(6, 3)
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    first = Evolution(model, ES, accept=Always(), seed=3, engine="vmap")
    records = first.evolve(fitness, 1)
    second = Evolution(model, ES, accept=Always(), seed=99, engine="vmap")
    second.load_state_dict(first.state_dict())
    records += second.evolve(fitness, 2)
    whole = evolve("vmap")
    assert [r.scores for r in records] == [r.scores for r in whole[1]]
    assert [r.sample_forwards for r in records] == [45, 45, 45]
    assert all(map(torch.equal, model.parameters(), whole[0].parameters()))


def test_what_the_fitness_raises_for_the_parent_reaches_the_user() -> None:
    def metric(outputs: Tensor, targets: Tensor) -> float:
        raise KeyError("mine")

    for engine in ("auto", Doubtful()):
        model = nn.Linear(6, 3)
        search = Evolution(model, ES, engine=engine)
        with pytest.raises(KeyError, match="mine"):
            search.evolve(Fitness(model, [(X, Y)], metric))


# Agreement


def scores(*values: float) -> Scores:
    per_example = torch.tensor(values, dtype=torch.float64)
    return Scores(float(per_example.mean()), per_example)


FAILED = Scores.failure(ValueError("no"))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Scores(0.5), Scores(0.500001), True),
        (Scores(0.5), Scores(0.6), False),
        (Scores(1e6), Scores(1e6 + 100), True),
        (FAILED, FAILED, True),
        (FAILED, Scores(0.5), False),
        (Scores(0.5), FAILED, False),
        (scores(1, 0, 1), scores(1, 0, 1), True),
        (scores(1, 0, 1), scores(1, 0, 0), True),  # a prediction at a tie
        (scores(1, 0, 1), scores(1, 1, 0), False),
        (scores(1, 0, 1), scores(1, 0), False),
        (scores(-5.0, -0.1), scores(-5.004, -0.1), True),
        (scores(*[1.0] * 1000), scores(*[0.0] * 5, *[1.0] * 995), True),
        (scores(*[1.0] * 1000), scores(*[0.0] * 6, *[1.0] * 994), False),
    ],
)
def test_two_scorings_agree_but_for_rounding(one: Scores, other: Scores, expected: bool) -> None:
    assert agree(one, other) is expected


# What no engine takes


def trained(model: nn.Module, data: Any) -> Fitness:
    return Fitness(model, data, "neg-loss", mode="train")


def calibrated(model: nn.Module, data: Any) -> Fitness:
    model.append(nn.BatchNorm1d(3))  # type: ignore[operator]
    return Fitness(model, data, "neg-loss", calibration=data)


def compiled(model: nn.Module, data: Any) -> Fitness:
    model.compile(backend="eager")
    return Fitness(model, data, "neg-loss")


def with_forward(model: nn.Module, data: Any) -> Fitness:
    return Fitness(model, data, "neg-loss", forward=lambda m, batch: (m(batch[0]), batch[1]))


def bare(model: nn.Module, data: Any) -> Any:
    return lambda: float(model(data[0][0]).sum())


@pytest.mark.parametrize("space", [AllWeights(), Only("2")], ids=repr)
@pytest.mark.parametrize("make", [trained, calibrated, compiled, bare])
def test_what_no_engine_takes_is_scored_in_place_without_a_word(make: Any, space: Space) -> None:
    assert chosen(*opened(mlp(), space, ES, 8, make)) == "inplace"


def test_a_forward_of_the_users_is_replayed_but_not_stacked() -> None:
    for space, expected in ((AllWeights(), "inplace"), (Only("2"), "prefix")):
        assert chosen(*opened(mlp(), space, ES, 8, with_forward)) == expected


# Phases and runs


@dataclass(frozen=True)
class Closing(Doubtful):
    """Counts how often it is told to drop what it keeps."""

    closed: list[None] = field(default_factory=list)

    def open(self, workspace: Workspace, evaluator: Evaluator) -> Doubting:
        return Dropping(self, workspace, evaluator)


class Dropping(Doubting):
    def close(self) -> None:
        self.engine.closed.append(None)


def test_what_engines_keep_is_dropped_at_the_end_of_each_phase() -> None:
    engine = Closing()
    evolve(engine, 3)
    assert len(engine.closed) == 1


def test_an_engine_that_is_given_up_drops_what_it_keeps_at_once() -> None:
    engine = Closing(wrong=-1)
    model = nn.Linear(6, 3)
    told: list[int] = []
    search = Evolution(model, ES, engine=engine)
    with pytest.warns(UserWarning, match="'doubtful' cannot score"):
        search.evolve(
            Fitness(model, [(X, Y)], "neg-loss"),
            2,
            on_generation=lambda record: told.append(len(engine.closed)),
        )
    assert told == [1, 1]


def test_what_was_given_up_stays_so_in_later_phases_and_is_not_told_again() -> None:
    model = nn.Linear(6, 3)
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    search = Evolution(model, ES, engine=Doubtful(wrong=-1))
    with pytest.warns(UserWarning, match="'doubtful' cannot score"):
        search.evolve(fitness, 1)
    search.evolve(fitness, 2)  # a warning would be an error


@pytest.mark.parametrize("settings", [{"wrong": -1}, {"raises": "at the members"}], ids=str)
def test_a_run_resumed_after_an_engine_was_given_up_gives_the_same(settings: Any) -> None:
    torch.manual_seed(2)
    model = nn.Linear(6, 3)
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    records = []
    state = None
    for seed, generations in ((3, 1), (99, 2)):
        search = Evolution(model, ES, accept=Always(), seed=seed, engine=Doubtful(**settings))
        if state is not None:
            search.load_state_dict(state)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            records += search.evolve(fitness, generations)
        assert len(told) == (1 if state is None else 0)  # what was found out is in the state
        state = search.state_dict()
    assert_same_run((model, records, None))


def test_what_was_found_out_holds_for_one_fitness() -> None:
    """An engine that could not take one is tried with the next, and checked with it, too."""
    model = nn.Linear(6, 3)
    search = Evolution(model, ES, engine="vmap")
    with pytest.warns(UserWarning, match="a bare callable scores the model"):
        search.evolve(lambda: 0.0)
    assert search.state_dict()["engines"] == {"verified": [], "given_up": ["vmap"]}
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    search.evolve(fitness)
    assert search.state_dict()["engines"] == {"verified": ["vmap"], "given_up": []}
    search.evolve(lambda: 0.0)  # the same warning is not given twice
    assert search.state_dict()["engines"]["given_up"] == ["vmap"]
    search.reset()
    assert search.state_dict()["engines"] == {"verified": [], "given_up": []}


class Scoring:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def score(self) -> float:
        return float(self.model(X).sum())


def test_a_bound_method_is_the_same_fitness_each_time() -> None:
    scoring = Scoring(nn.Linear(6, 3))
    search = Evolution(scoring.model, ES, engine="vmap")
    with pytest.warns(UserWarning, match="a bare callable"):
        search.evolve(scoring.score)
    search.evolve(scoring.score)
    assert search.state_dict()["engines"]["given_up"] == ["vmap"]


def test_a_fitness_is_not_kept_alive() -> None:
    model = nn.Linear(6, 3)
    search = Evolution(model, ES, engine="vmap")
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    search.evolve(fitness)
    gone = weakref.ref(fitness)
    del fitness
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_sixteen_bits_are_no_disagreement(engine: str) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        fitness = Fitness(model, [(X, Y)], "neg-loss", autocast=torch.bfloat16)
        search = Evolution(model, ES, engine=engine, seed=seed)
        search.evolve(fitness, 2)  # a warning would be an error
        assert search.state_dict()["engines"] == {"verified": ["vmap"], "given_up": []}


def test_the_warning_points_at_the_users_line() -> None:
    model = nn.Linear(6, 3)
    for engine in ("prefix", Doubtful(wrong=-1), Doubtful(raises="before the parent")):
        search = Evolution(model, ES, engine=engine)
        with pytest.warns(UserWarning, match="cannot score these members") as told:
            search.evolve(Fitness(model, [(X, Y)], "neg-loss"))
        assert [Path(one.filename).name for one in told] == ["test_auto.py"]


@dataclass(frozen=True)
class Estimating(Doubtful):
    """Tells that some members were scored on a part of the examples, all of them at first."""

    estimates: list[int] = field(default_factory=lambda: [4, 2])

    def open(self, workspace: Workspace, evaluator: Evaluator) -> Doubting:
        return Guessing(self, workspace, evaluator)


class Guessing(Doubting):
    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        found = super().score(round, members)
        some = self.engine.estimates.pop(0) if self.engine.estimates else 0
        first = len(found) - some  # the last ones
        return found[:first] + [Scores(one.value, seen=3) for one in found[first:]]


@pytest.mark.parametrize(
    ("wrong", "warned"),
    [(-1, False), (1, True)],
    ids=["an estimate is not checked", "the last member in full is"],
)
def test_estimates_are_not_checked_but_the_last_member_that_was_in_full(
    wrong: int, warned: bool
) -> None:
    """In the first generation all are estimates, and in the second the last two."""
    _, records, told = evolve(Estimating(wrong=wrong), 2)
    assert [("it gave a member the score 7" in text) for text in told] == [True] * warned
    assert [record.scores[wrong] == 7 for record in records] == [True, not warned]


def test_in_half_precision_they_may_be_farther_apart() -> None:
    one, other = scores(-5.0, -0.1, -0.2), scores(-5.05, -0.11, -0.2)
    assert agree(one, other, in_half=True)
    assert not agree(one, other)
    assert not agree(scores(-5.0, -0.1, -0.2), scores(-5.5, -0.9, -0.2), in_half=True)
