"""A fitness that does what it likes, memory that runs out, centers that break, odd parameters."""

from __future__ import annotations

import io
import math
import random
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evostep
from evostep import Always, Evolution, Fitness, LowRank, OpenAIES, RandomMutation
from evostep.acceptance import Improves, Rule
from evostep.strategies.cmaes import CMAES
from evostep.strategies.snes import SNES

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
ES = OpenAIES(0.1, lr=0.05, population=4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).train()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What a fitness may do for a member. The parent of each generation is scored in peace.


def raises(model: nn.Module) -> Any:
    raise ValueError("no")


def meddles(model: nn.Module) -> float:
    model.eval()
    model(X)
    model.train()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.requires_grad_(False)
        tensor.zero_()
    model.register_buffer("late", torch.ones(1))
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    print("printed")
    return 0.0


DOES: dict[str, tuple[Callable[[nn.Module], Any], str | None]] = {
    "raises": (raises, "ValueError: no"),
    "NaN": (lambda model: math.nan, "the fitness was nan"),
    "infinity": (lambda model: math.inf, "the fitness was inf"),
    "minus infinity": (lambda model: torch.tensor(-math.inf), "the fitness was -inf"),
    "nothing": (lambda model: None, "is a `return` missing?"),
    "a text": (lambda model: "0.5", "a fitness must return one number, got a str"),
    "two numbers": (lambda model: [0.5, 0.5], "a fitness must return one number"),
    "a complex number": (lambda model: 1j, "a fitness must return one number"),
    "meddles": (meddles, None),
}


@pytest.mark.parametrize("rule", [Always(), Improves()])
@pytest.mark.parametrize("does", DOES)
def test_whatever_a_fitness_does_for_a_member_only_its_own_score_is_lost(
    does: str, rule: Rule, capsys: pytest.CaptureFixture[str]
) -> None:
    def evolve(hostile: bool) -> tuple[evostep.Record, dict[str, Tensor], list[Any]]:
        model, calls = network(), [0]
        act, _ = DOES[does]

        def fitness() -> Any:
            calls[0] += 1
            if calls[0] == 3:  # the parent comes first
                return act(model) if hostile else math.nan
            return -float(model(X).square().mean())

        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        record = Evolution(model, ES, accept=rule, engine="inplace").evolve(fitness)[0]
        streams = torch.get_rng_state().tolist(), random.getstate(), np.random.rand()
        modes = [module.training for module in model.modules()]
        return record, bits(model), [*streams, modes, [p.requires_grad for p in model.parameters()]]

    record, weights, rest = evolve(True)
    twin, expected, undisturbed = evolve(False)
    error = DOES[does][1]
    assert rest == undisturbed
    assert record.scores[0] == twin.scores[0]
    assert record.scores[2:] == twin.scores[2:]
    if error is None:
        assert (record.failed, record.error, record.scores[1]) == (0, None, 0.0)
        assert weights.keys() == expected.keys()
        assert capsys.readouterr().out == "printed\n"  # what a user prints is the user's
        return
    assert record.failed == 1
    assert error in str(record.error)
    assert math.isnan(record.scores[1])
    assert same(weights, expected)  # as if it had been NaN, whatever it was


# Memory.


@pytest.mark.parametrize("when", ["parent", "member"])
def test_memory_that_runs_out_is_told_with_what_to_do(when: str) -> None:
    model, calls = network(), [0]

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == {"parent": 1, "member": 3}[when]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return -outputs.square().mean(1)

    before = bits(model)
    search = Evolution(model, ES, accept=Always(), engine="inplace")
    fitness = Fitness(model, [(X, Y)], metric)
    if when == "member":
        record = search.evolve(fitness)[0]
        assert (record.failed, record.error) == (1, "OutOfMemoryError: CUDA out of memory")
        return
    with pytest.raises(torch.OutOfMemoryError) as caught:
        search.evolve(fitness)
    assert "give Fitness smaller batches" in "".join(traceback.format_exception(caught.value))
    assert same(bits(model), before)
    assert search.evolve(fitness)[0].failed == 0  # and it goes on


# A center that breaks.


@pytest.mark.parametrize("rule", [Always(), Improves(), Improves(every="phase")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_center_whose_weights_are_not_finite_is_put_back_and_counted(
    rule: Rule, dtype: torch.dtype
) -> None:
    model = nn.Linear(4, 2).to(dtype)
    before = bits(model)
    search = Evolution(model, OpenAIES(0.1, lr=1e39, population=4), accept=rule, engine="inplace")
    record = search.evolve(lambda: float(model.weight.double().sum()))[0]
    assert (record.accepted, record.failed, record.moved) == (False, 1, False)
    assert record.error is not None
    assert "would be NaN or infinite" in record.error
    assert math.isnan(record.candidate or 0)
    assert same(bits(model), before)


def test_weights_that_are_infinite_on_purpose_stay_so() -> None:
    mask = torch.tensor([0.0, -math.inf, 1.0])
    search = Evolution({"mask": mask}, SNES(0.1, population=4, scale="absolute"), accept=Always())
    records = search.evolve(lambda: -float(mask[0] ** 2 + mask[2] ** 2), 3)
    assert mask[1] == -math.inf
    assert [record.failed for record in records] == [0, 0, 0]


def test_a_phase_that_ends_at_a_score_that_is_not_finite_is_put_back_counted_and_told() -> None:
    model = network()
    before, good = bits(model), Fitness(model, [(X, Y)], "neg-loss")

    def judge() -> float:
        return 0.0 if same(bits(model), before) else math.nan

    search = Evolution(model, ES, accept=Improves(every="phase"))
    *_, last = search.evolve(good, 2, accept_on=judge)
    assert last.verdict is not None
    assert (last.verdict.accepted, last.verdict.error) == (False, "the fitness was nan")
    assert (last.failed, last.error) == (1, "the fitness was nan")
    assert same(bits(model), before)


# Rules that ask for no score learn the center's in the next generation.

STEPS = {
    "openai-es": ES,
    "openai-es-adam": OpenAIES(0.1, lr=0.05, population=4, optimizer=torch.optim.Adam),
    "snes": SNES(0.1, population=4),
    "cmaes": CMAES(0.1, population=4),
    "spsa": evostep.SPSA(0.1, lr=0.05),
    "mutation": RandomMutation(0.1, population=4),
}
put_back = pytest.mark.filterwarnings("ignore:.*the one before was put back")


class Fragile:
    """A distance to one, which has no value at weights that are broken."""

    def __init__(self, *broken: Tensor, value: float = math.nan) -> None:
        self.weight = torch.zeros(6)
        self.broken, self.value = list(broken), value

    def __call__(self) -> float:
        if any(torch.equal(self.weight, one) for one in self.broken):
            return self.value
        return -float((self.weight - 1.0).square().sum())

    def search(self, strategy: Any, rule: Rule | None = None, **options: Any) -> Evolution:
        accept = rule or Always()
        return Evolution({"w": self.weight}, strategy, accept=accept, engine="inplace", **options)


class AllButTheFirst(Rule):
    def __call__(self, parent: evostep.Scores, candidate: evostep.Scores, attempts: int) -> bool:
        return attempts > 1


@put_back
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", STEPS)
def test_a_center_whose_score_is_not_finite_is_put_back_counted_and_told(
    name: str, value: float
) -> None:
    fragile, moves = Fragile(value=value), [0]
    search = fragile.search(STEPS[name])

    def breaks(record: evostep.Record) -> None:  # of a member it was finite
        if record.generation == 0:
            fragile.broken.append(fragile.weight.clone())

    def count() -> None:
        moves[0] += 1

    with pytest.warns(UserWarning, match=rf"^generation 1: the fitness .* was {value}: the one be"):
        first, second, third = search.evolve(fragile, 3, on_generation=breaks, on_move=count)
    assert (first.accepted, first.failed, first.moved) == (True, 0, True)
    assert (second.failed, second.moved, second.parent) == (1, True, first.parent)
    assert second.error == f"the fitness of the center was {value}: the one before was put back"
    assert second.sample_forwards == first.sample_forwards + 2  # it, and the one before, looked at
    assert (third.failed, third.error) == (0, None)
    assert moves == [3]
    twin = Fragile()  # as if a rule had refused it
    records = twin.search(STEPS[name], AllButTheFirst()).evolve(twin, 3)
    assert [record.scores for record in records] == [r.scores for r in (first, second, third)]
    assert torch.equal(twin.weight, fragile.weight)


def test_where_all_scores_were_finite_nothing_is_put_back_and_nothing_is_held_longer() -> None:
    sound, one_by_one = Fragile(), Fragile()
    search, other = sound.search(ES), one_by_one.search(ES)
    records = search.evolve(sound, 3)
    for _ in range(3):
        other.evolve(one_by_one)
    assert torch.equal(sound.weight, one_by_one.weight)
    assert [record.sample_forwards for record in records] == [5, 5, 5]
    assert "former" not in search.state_dict()


@pytest.mark.parametrize("start", [math.nan, math.inf])
def test_weights_that_have_no_finite_score_from_the_beginning_are_left_for_members_that_do(
    start: float,
) -> None:
    fragile = Fragile(torch.zeros(6), value=start)
    search = fragile.search(RandomMutation(0.1, population=4))
    with pytest.warns(UserWarning, match=r"generation 0: the fitness of the weights as they stand"):
        first, second = search.evolve(fragile, 2)
    assert (first.accepted, first.failed, second.failed) == (True, 0, 0)
    assert math.isfinite(second.parent)


def test_where_the_center_before_has_none_either_on_these_examples_the_center_stays() -> None:
    fragile = Fragile()
    search = fragile.search(ES)

    def breaks(record: evostep.Record) -> None:
        if record.generation == 0:
            fragile.broken = [torch.zeros(6), fragile.weight.clone()]

    with pytest.warns(UserWarning, match=r"generation 1: the fitness of the weights as they stand"):
        _, second, third = search.evolve(fragile, 3, on_generation=breaks)
    assert (second.failed, third.failed) == (0, 0)
    assert second.accepted
    assert math.isnan(second.parent)


@put_back
@pytest.mark.parametrize("how", ["saved", "interrupted"])
@pytest.mark.parametrize("name", ["openai-es", "snes"])
def test_what_is_put_back_is_put_back_by_a_resumed_run_too(name: str, how: str) -> None:
    sound = Fragile()
    sound.search(STEPS[name]).evolve(sound)
    whole = Fragile(sound.weight)
    search = whole.search(STEPS[name])
    records = search.evolve(whole, 3)
    assert [record.failed for record in records] == [0, 1, 0]

    fragile, kept = Fragile(sound.weight), io.BytesIO()
    search = fragile.search(STEPS[name])

    def stop(record: evostep.Record) -> None:
        if how == "interrupted":
            raise KeyboardInterrupt
        if record.generation == 0:
            torch.save({"w": fragile.weight.clone(), **search.state_dict()}, kept)

    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            search.evolve(fragile, 3, on_generation=stop)
        resumed = search
    else:
        search.evolve(fragile, 3, on_generation=stop)
        kept.seek(0)
        state = torch.load(kept, weights_only=True)
        fragile = Fragile(sound.weight)
        fragile.weight.copy_(state.pop("w"))
        resumed = fragile.search(STEPS[name])
        resumed.load_state_dict(state)
        assert resumed.state_dict().keys() == state.keys()
    again = resumed.evolve(fragile, 2)
    assert [record.scores for record in again] == [record.scores for record in records[1:]]
    assert [record.failed for record in again] == [1, 0]
    assert torch.equal(fragile.weight, whole.weight)
    # of other weights it says nothing
    elsewhere = Fragile(torch.full((6,), 9.0))
    other = elsewhere.search(STEPS[name])
    if how == "saved":
        other.load_state_dict(state)
        elsewhere.weight.fill_(9.0)
        with pytest.warns(UserWarning, match="of the weights as they stand is nan"):
            assert other.evolve(elsewhere)[0].failed == 0


@put_back
def test_statistics_of_batch_norm_are_put_back_with_the_center_they_belong_to() -> None:
    def run(broken: list[Tensor]) -> tuple[list[evostep.Record], dict[str, Tensor]]:
        model = network()

        def metric(outputs: Tensor, targets: Tensor) -> Tensor:
            if any(torch.equal(model[0].weight, one) for one in broken):
                return torch.full((len(outputs),), math.nan)
            return -outputs.square().mean(1)

        fitness = Fitness(model, [(X, Y)], metric, calibration=[(X, Y)])
        search = Evolution(model, ES, accept=Always() if broken else AllButTheFirst())
        return search.evolve(fitness, 2), bits(model)

    model = network()
    fitness = Fitness(model, [(X, Y)], lambda o, t: -o.square().mean(1), calibration=[(X, Y)])
    Evolution(model, ES, accept=Always()).evolve(fitness)
    records, after = run([model[0].weight.detach().clone()])
    assert [record.failed for record in records] == [0, 1]
    _, twin = run([])
    assert same(after, twin)


# Metrics that need two classes and see one.


@pytest.mark.parametrize(
    "metric",
    [
        *("accuracy", "balanced-accuracy", "worst-class-recall", "g-mean", "macro-f1"),
        *("f-beta(2)", "mcc", "quadratic-kappa", "expected-calibration-error"),
        *("recall-at-precision(0.9)", "precision-at-k(5)", "neg-loss"),
    ],
)
def test_our_metrics_are_finite_where_there_is_one_class(metric: str) -> None:
    model = network().eval()
    assert math.isfinite(Fitness(model, [(X, torch.zeros(20, dtype=torch.long))], metric)())


@pytest.mark.filterwarnings("ignore:Only one class is present", "ignore:.*failed for all 4 members")
def test_a_metric_of_others_that_has_no_value_for_one_class_is_told_and_nothing_moves() -> None:
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    model = network()
    fitness = Fitness(model, [(X, torch.zeros(20, dtype=torch.long))], roc_auc_score)
    before = bits(model)
    with pytest.warns(UserWarning, match="of the weights as they stand is nan"):
        record = Evolution(model, ES).evolve(fitness)[0]
    assert (record.failed, record.accepted) == (4, False)
    assert same(bits(model), before)


# Parameters.


class Apart(nn.Module):
    """Two layers, of which the second may be elsewhere."""

    def __init__(self, device: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.near, self.far = nn.Linear(4, 2), nn.Linear(2, 2, device=device)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.near(x)
        return out


CALLS: dict[str, Callable[[nn.Module, Fitness], object]] = {
    **{
        f"evolve {engine}": lambda m, f, engine=engine: Evolution(m, ES, engine=engine).evolve(f)
        for engine in ("auto", "inplace", "vmap", "racing")
    },
    "evolve safe": lambda m, f: Evolution(m, RandomMutation(0.1, scale="safe")).evolve(f),
    "evolve cmaes": lambda m, f: Evolution(m, CMAES(0.1)).evolve(f),
    "evolve span": lambda m, f: Evolution(m, SNES(0.1), space=evostep.Span()).evolve(f),
    "a callable": lambda m, f: Evolution(m, ES).evolve(lambda: f()),
    "Evolved": lambda m, f: evostep.Evolved(torch.optim.SGD(m.parameters(), 0.1), ES).evolve(f),
    "suggest_sigma": lambda m, f: evostep.suggest_sigma(m, [(X, Y)]),
    "polish": lambda m, f: evostep.polish(
        m, [(X.repeat(5, 1), Y.repeat(5))], "accuracy", space=evostep.AllWeights(), draws=100
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_parameters_on_a_device_without_numbers_are_refused_by_name_and_nothing_moves(
    call: str,
) -> None:
    model = Apart("meta")
    before = [p.detach().clone() for p in model.near.parameters()]
    with pytest.raises(ValueError, match=r"^'far\.weight' is on the device meta .*: load") as told:
        CALLS[call](model, Fitness(model, [(X, Y)], "neg-loss"))
    assert "\n" not in str(told.value)
    for was, now in zip(before, model.near.parameters(), strict=True):
        assert torch.equal(was, now)
    # what has its numbers evolves
    search = Evolution(model, ES, space=evostep.Only("near.*"), accept=Always())
    (record,) = search.evolve(Fitness(model, [(X, Y)], "neg-loss"))
    assert (record.failed, record.accepted) == (0, True)


class Odd(nn.Module):
    """Parameters of three types, of no elements, frozen, shared; one of no use to the forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.frozen = nn.Linear(4, 3), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.frozen.weight
        self.wide, self.small = nn.Linear(3, 2).double(), nn.Parameter(torch.ones(2).bfloat16())
        self.empty, self.none = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(0))
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.frozen(self.first(x))) + self.empty.sum() + self.none.sum()
        out: Tensor = self.wide(x.double()) + self.small.double()
        return out


@pytest.mark.parametrize("engine", ["inplace", "vmap", "lowrank", "prefix", "racing"])
@pytest.mark.parametrize(
    "strategy",
    [
        RandomMutation(0.2, population=4),
        RandomMutation(0.2, population=4, scale="safe"),
        OpenAIES(0.1, lr=0.05, population=4, noise=LowRank(1)),
        CMAES(0.1, population=4),
    ],
    ids=["mutation", "safe", "low rank", "cmaes"],
)
@pytest.mark.filterwarnings("ignore:engine .* cannot score these members")
def test_parameters_of_any_type_and_size_evolve_and_frozen_ones_stand_still(
    strategy: Any, engine: str
) -> None:
    model = Odd()
    before = bits(model)
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    records = Evolution(model, strategy, engine=engine, accept=Always()).evolve(fitness, 2)
    after = bits(model)
    assert [record.failed for record in records] == [0, 0]
    assert all(tensor.isfinite().all() for tensor in after.values())
    still = {name for name in before if torch.equal(before[name], after[name])}
    still -= {"small"}  # of 16 bits: a safe step may be below its precision
    assert still == {"frozen.weight", "frozen.bias", "tied.weight", "empty", "none"}
    assert model.tied.weight is model.frozen.weight
    assert [t.dtype for t in after.values()] == [t.dtype for t in before.values()]
