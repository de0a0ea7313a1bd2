"""Evolved: a real torch optimizer, equal to its base wherever evolution is not asked for."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from evostep import Always, Evolved, Fitness, Only, OpenAIES, RandomMutation

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()
ES = OpenAIES(0.05, lr=0.02, population=4)
MUTATION = RandomMutation(0.05, population=4)

BASES: dict[str, Callable[..., Optimizer]] = {
    "sgd": functools.partial(SGD, lr=0.05, momentum=0.9),
    "sgd, nesterov": functools.partial(
        SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": functools.partial(Adam, lr=0.01),
    "adam, amsgrad": functools.partial(Adam, lr=0.01, amsgrad=True),
    "adamw": functools.partial(AdamW, lr=0.01, weight_decay=0.1),
    "sgd, fused": functools.partial(SGD, lr=0.05, momentum=0.9, fused=True),
    "adam, fused": functools.partial(Adam, lr=0.01, fused=True),
}
each_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
few_bases = pytest.mark.parametrize(
    "base", [BASES[name] for name in ("sgd", "adam", "adamw")], ids=["sgd", "adam", "adamw"]
)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def make(base: Callable[..., Optimizer] = BASES["sgd"], **options: Any) -> tuple[Any, Evolved]:
    model = network()
    options.setdefault("strategy", ES)
    return model, Evolved(base(model.parameters()), **options)


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> None:
    for i in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X[i::3]), Y[i::3]).backward()
        optimizer.step()


def fitness_of(model: nn.Module) -> Fitness:
    return Fitness(model, [(X, Y)], "neg-loss")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def same_state(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_state(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# A real optimizer


@each_base
def test_without_evolution_it_is_the_bare_optimizer(base: Callable[..., Optimizer]) -> None:
    bare_model = network()
    bare = base(bare_model.parameters())
    model, optimizer = make(base)
    train(bare_model, bare, 5)
    train(model, optimizer, 5)
    assert same(bare_model, model)
    state = optimizer.state_dict()
    state.pop("evolution")
    assert same_state(state, bare.state_dict())


def test_it_is_an_optimizer_whose_groups_state_and_defaults_are_the_bases() -> None:
    model, optimizer = make()
    train(model, optimizer)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults is optimizer.base.defaults
    assert len(optimizer.state) == 4
    groups, state, defaults = [dict(optimizer.param_groups[0])], {"x": {}}, {"lr": 7.0}
    optimizer.param_groups, optimizer.state, optimizer.defaults = groups, state, defaults
    assert optimizer.base.param_groups is groups
    assert optimizer.base.state is state
    assert optimizer.base.defaults is defaults


def test_making_it_leaves_the_bases_state_alone() -> None:
    model = network()
    base = BASES["adam"](model.parameters())
    train(model, base)
    before = copy.deepcopy(base.state_dict())
    Evolved(base, ES)
    assert same_state(before, base.state_dict())


def test_a_changed_learning_rate_is_the_bases() -> None:
    model, optimizer = make(functools.partial(SGD, lr=0.05))
    optimizer.param_groups[0]["lr"] = 0.0
    before = copy.deepcopy(model)
    train(model, optimizer)
    assert same(before, model)


def test_zero_grad() -> None:
    model, optimizer = make()
    for set_to_none in (True, False):
        F.cross_entropy(model(X), Y).backward()
        optimizer.zero_grad(set_to_none=set_to_none)
        grads = [p.grad for p in model.parameters()]
        assert all((g is None) is set_to_none or not bool(g.any()) for g in grads)  # type: ignore[union-attr]


def test_a_closure() -> None:
    model = network()
    optimizer = Evolved(torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4), ES)
    calls = []

    def closure() -> Tensor:
        calls.append(None)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach())
    assert len(calls) > 1
    assert float(closure().detach()) < first


def test_a_group_added_later_trains_and_evolves() -> None:
    model = network()
    optimizer = Evolved(SGD(model[0].parameters(), lr=0.1), ES, model=model, accept=Always())
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.2})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    for move in (lambda: train(model, optimizer, 1), lambda: optimizer.evolve(fitness_of(model))):
        before = [p.detach().clone() for p in model.parameters()]
        move()
        assert not any(map(torch.equal, before, model.parameters()))
    assert list(optimizer.evolution.slots.tensors) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_weights_change_in_place() -> None:
    model, optimizer = make(accept=Always())
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    optimizer.evolve(fitness_of(model), 3)
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == before


def test_it_shows_its_parts() -> None:
    _, optimizer = make()
    for part in ("Evolved(", "SGD (", "OpenAIES(sigma=0.05", "AllWeights()"):
        assert part in repr(optimizer)


def test_what_it_lacks_is_the_bases_or_an_error() -> None:
    _, optimizer = make(BASES["adam, fused"])
    assert optimizer._step_supports_amp_scaling is True
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = optimizer.no_such_thing


def test_step_has_the_signature_of_torchs() -> None:
    names = list(inspect.signature(Evolved.step).parameters)
    assert names == ["self", "closure", "kwargs"], "and the base's own keywords"


# Evolution within


def test_evolve_gives_records_and_keeps_them() -> None:
    model, optimizer = make()
    fitness = fitness_of(model)
    seen: list[Any] = []
    records = optimizer.evolve(fitness, 3, on_generation=seen.append)
    assert records == seen == optimizer.history
    assert optimizer.evolve(fitness, 9, max_forwards=1) == optimizer.history[3:]
    assert len(optimizer.history) == 4
    assert optimizer.history[-1].generation == 3


def test_evolve_improves_what_it_is_told_to() -> None:
    model, optimizer = make(strategy=RandomMutation(0.1, population=16))
    fitness = Fitness(model, [(X, Y)], "accuracy")
    before = fitness()
    optimizer.evolve(fitness, 15)
    assert fitness() > before


def test_accept_on_reaches_the_core() -> None:
    model, optimizer = make()
    before = copy.deepcopy(model)
    records = optimizer.evolve(fitness_of(model), 3, accept_on=lambda: 0.0)  # never better
    assert not any(record.accepted for record in records)
    assert same(before, model)


def test_a_groups_sigma_replaces_the_strategys() -> None:
    model = network()
    groups = [
        {"params": [model[0].weight], "sigma": 0.0},
        {"params": [model[0].bias]},
        {"params": model[2].parameters(), "sigma": 2.0},
    ]
    base = SGD(groups, lr=0.1)
    strategy = RandomMutation(0.01, population=1, scale="absolute")
    optimizer = Evolved(base, strategy, model=model, accept=Always())
    before = copy.deepcopy(model)
    optimizer.evolve(lambda: float(model[2].weight.detach().sum()))
    moved = [
        float((p - q).detach().square().mean().sqrt())
        for p, q in zip(model.parameters(), before.parameters(), strict=True)
    ]
    assert moved[0] == 0.0
    assert 0.002 < moved[1] < 0.03
    assert 1.0 < moved[2] < 3.0
    assert 0.4 < moved[3] < 6.0


def test_a_groups_sigma_may_be_scheduled() -> None:
    model, optimizer = make(
        strategy=RandomMutation(0.01, population=1), accept=Always(), model=None
    )
    fitness = fitness_of(model)
    optimizer.evolve(fitness)
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["sigma"] = 0.0
    optimizer.evolve(fitness)
    assert same(before, model)
    optimizer.param_groups[0]["sigma"] = -1.0
    with pytest.raises(ValueError, match="sigma must be finite and >= 0, got -1"):
        optimizer.evolve(fitness)


# Momentum


@pytest.mark.parametrize(
    ("policy", "factor"), [("keep", 1.0), ("reset", 0.0), (0.25, 0.25), (0, 0.0), (1, 1.0)]
)
@few_bases
def test_an_accepted_move_treats_momentum_as_told(
    base: Callable[..., Optimizer], policy: Any, factor: float
) -> None:
    model, optimizer = make(base, momentum=policy, accept=Always())
    train(model, optimizer)
    before = copy.deepcopy(optimizer.base.state_dict()["state"])
    record = optimizer.evolve(fitness_of(model))[0]
    assert record.accepted
    for i, after in optimizer.base.state_dict()["state"].items():
        for key, value in after.items():
            first = key in ("momentum_buffer", "exp_avg")
            assert torch.equal(value, before[i][key] * (factor if first else 1.0)), key


def test_a_move_that_is_not_accepted_leaves_momentum_alone() -> None:
    model, optimizer = make(momentum="reset")
    train(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    records = optimizer.evolve(lambda: 0.5, 2)
    assert not any(record.accepted for record in records)
    assert same_state(before["state"], optimizer.state_dict()["state"])


def test_momentum_is_damped_once_for_each_accepted_generation() -> None:
    model, optimizer = make(momentum=0.5, accept=Always())
    train(model, optimizer)
    before = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    accepted = sum(record.accepted for record in optimizer.evolve(fitness_of(model), 3))
    assert accepted == 3
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], before / 8)


def test_momentum_of_what_does_not_evolve_is_left_alone() -> None:
    model = network()
    groups = [{"params": model[0].parameters(), "sigma": 0.0}, {"params": model[2].parameters()}]
    base = SGD(groups, lr=0.1, momentum=0.9)
    space = Only("0.*", "2.weight")
    optimizer = Evolved(base, ES, model=model, space=space, momentum="reset", accept=Always())
    train(model, optimizer)
    optimizer.evolve(fitness_of(model))
    moved = [bool(optimizer.state[p]["momentum_buffer"].any()) for p in model.parameters()]
    assert moved == [True, True, False, True]


def test_momentum_that_is_not_there_yet_is_no_trouble() -> None:
    model, optimizer = make(momentum="reset", accept=Always())
    optimizer.evolve(fitness_of(model))
    assert len(optimizer.state) == 0
    train(model, optimizer)


# Names


NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


class Wrapper(nn.Module):
    """Names as DataParallel and its like make them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out


class Compiled(nn.Module):
    """Names as torch.compile makes them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._orig_mod(x)
        return out


def evolved_by(how: str) -> tuple[nn.Module, Evolved]:
    """The same network and optimizer, which learns of names in different ways."""
    model = network()
    wrapped: nn.Module = model
    for kind, wrap in (("compiled", Compiled), ("wrapped", Wrapper)):
        wrapped = wrap(wrapped) if kind in how else wrapped
    parameters: Any = wrapped.named_parameters() if "named" in how else wrapped.parameters()
    given = wrapped if "model" in how else None
    optimizer = Evolved(SGD(parameters, lr=0.1), ES, model=given, accept=Always())
    return model, optimizer


WAYS = [
    "named",
    "model",
    "first fitness",
    "named, wrapped",
    "model, wrapped",
    "named, compiled",
    "model, compiled, wrapped",
]


@pytest.mark.parametrize("how", WAYS)
def test_wherever_names_come_from_they_and_the_noise_are_the_same(how: str) -> None:
    model, optimizer = evolved_by(how)
    optimizer.evolve(fitness_of(model), 2)
    assert list(optimizer.evolution.slots.tensors) == NAMES
    reference, other = evolved_by("named")
    other.evolve(fitness_of(reference), 2)
    assert same(model, reference)


def test_names_of_a_first_fitness_stay() -> None:
    model, optimizer = evolved_by("first fitness")
    assert list(optimizer.evolution.slots.tensors) == [
        "group0.0",
        "group0.1",
        "group0.2",
        "group0.3",
    ]
    optimizer.evolve(fitness_of(model))
    optimizer.evolve(lambda: 0.0)
    assert list(optimizer.evolution.slots.tensors) == NAMES


def test_positions_do_where_no_names_are_known() -> None:
    model, optimizer = evolved_by("nothing")
    before = copy.deepcopy(model)
    optimizer.evolve(lambda: float(torch.linalg.vector_norm(model[0].weight)))  # type: ignore[index]
    assert not same(model, before)


def test_a_first_fitness_of_another_model_is_refused_and_forgotten() -> None:
    model, optimizer = evolved_by("first fitness")
    with pytest.raises(ValueError, match=r"parameter 0.*not one of the model's"):
        optimizer.evolve(fitness_of(network()))
    optimizer.evolve(fitness_of(model))
    assert list(optimizer.evolution.slots.tensors) == NAMES


# Saving and resuming


@few_bases
@pytest.mark.parametrize("how", ["named", "nothing"])
def test_resuming_with_evolution_in_between_gives_the_same_bits(
    base: Callable[..., Optimizer], how: str
) -> None:
    def start() -> tuple[nn.Module, Evolved]:
        model = network()
        parameters: Any = model.named_parameters() if how == "named" else model.parameters()
        return model, Evolved(base(parameters), ES, momentum=0.5, seed=5)

    def epoch(model: nn.Module, optimizer: Evolved) -> None:
        train(model, optimizer)
        optimizer.evolve(fitness_of(model), 2)

    whole, never_stopped = start()
    saved = []
    for _ in range(4):
        epoch(whole, never_stopped)
        saved.append(
            (copy.deepcopy(whole.state_dict()), through_a_file(never_stopped.state_dict()))
        )
    for stop in range(3):
        model, optimizer = start()
        model.load_state_dict(saved[stop][0])
        optimizer.load_state_dict(saved[stop][1])
        for _ in range(3 - stop):
            epoch(model, optimizer)
        assert same(model, whole)
        assert same_state(optimizer.state_dict(), never_stopped.state_dict())


def test_resuming_in_the_middle_of_evolve_gives_the_same_bits() -> None:
    model, optimizer = make(momentum=0.5)
    train(model, optimizer)
    saved: list[Any] = []

    def save(record: Any) -> None:
        state = through_a_file(optimizer.state_dict())
        saved.append((copy.deepcopy(model.state_dict()), state))

    optimizer.evolve(fitness_of(model), 4, on_generation=save)
    train(model, optimizer)
    for done, (weights, state) in enumerate(saved, start=1):
        again, resumed = make(momentum=0.5)
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        resumed.evolve(fitness_of(again), 4 - done)
        train(again, resumed)
        assert same(again, model)


def test_the_state_is_the_bases_and_evolution_without_history() -> None:
    model, optimizer = make()
    train(model, optimizer)
    optimizer.evolve(fitness_of(model), 2)
    state = optimizer.state_dict()
    assert list(state) == ["state", "param_groups", "evolution"]
    assert state["evolution"]["generation"] == 2
    assert "history" not in state["evolution"]


def test_a_bare_optimizers_state_loads_and_evolution_starts_anew() -> None:
    bare_model = network()
    bare = BASES["adam"](bare_model.parameters())
    train(bare_model, bare)
    model, optimizer = make(BASES["adam"])
    optimizer.evolve(fitness_of(model), 2)
    optimizer.load_state_dict(through_a_file(bare.state_dict()))
    assert same_state(optimizer.base.state_dict(), bare.state_dict())
    assert optimizer.evolution.generation == 0
    assert optimizer.evolve(fitness_of(model))[0].generation == 0


def test_its_state_loads_into_a_bare_optimizer() -> None:
    model, optimizer = make(BASES["adam"])
    train(model, optimizer)
    optimizer.evolve(fitness_of(model))
    other = network()
    bare = BASES["adam"](other.parameters())
    bare.load_state_dict(through_a_file(optimizer.state_dict()))
    assert same_state(bare.state_dict(), optimizer.base.state_dict())


def test_loading_does_not_change_the_state_that_was_given() -> None:
    model, optimizer = make()
    train(model, optimizer)
    optimizer.evolve(fitness_of(model))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    make()[1].load_state_dict(state)
    assert same_state(state, kept)


def test_a_state_of_another_strategy_or_of_other_names_is_refused() -> None:
    model, optimizer = make()
    optimizer.evolve(fitness_of(model))
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="saved by OpenAIES, this evolution has RandomMutation"):
        make(strategy=MUTATION)[1].load_state_dict(state)
    other = nn.ModuleDict({"a": nn.Linear(4, 6), "b": nn.Linear(6, 3)})
    renamed = Evolved(BASES["sgd"](other.parameters()), ES, model=other)
    with pytest.raises(ValueError, match=r"other names .0.weight where.*a.weight"):
        renamed.load_state_dict(state)


def test_a_state_of_other_groups_is_refused() -> None:
    _, optimizer = make()
    small = nn.Linear(2, 2)
    other = Evolved(BASES["sgd"](small.parameters()), ES)
    with pytest.raises(ValueError, match="match the size"):
        other.load_state_dict(optimizer.state_dict())


# Copies


def test_a_deepcopy_is_independent() -> None:
    model, optimizer = make(model=None, accept=Always())
    train(model, optimizer)
    optimizer.evolve(fitness_of(model))
    before, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    twin = copy.deepcopy(optimizer)
    twin.evolve(lambda: float(torch.rand(()))), twin.param_groups[0].update(lr=9.0)
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    twin.step()
    assert same(before, model)
    assert same_state(state, optimizer.state_dict())


def test_a_deepcopy_with_its_model_stays_tied_to_it() -> None:
    model, optimizer = make(model=None)
    train(model, optimizer)
    twin_model, twin = copy.deepcopy((model, optimizer))
    assert twin.param_groups[0]["params"][0] is twin_model[0].weight
    for m, o in ((model, optimizer), (twin_model, twin)):
        train(m, o)
        o.evolve(fitness_of(m), 2)
        train(m, o)
    assert same(model, twin_model)
    assert same_state(optimizer.state_dict(), twin.state_dict())
    assert len(twin.history) == 2


@few_bases
@pytest.mark.parametrize("named", [True, False])
def test_a_pickle_goes_on_as_the_original(base: Callable[..., Optimizer], named: bool) -> None:
    model = network()
    optimizer = Evolved(base(model.parameters()), ES, model=model if named else None)
    train(model, optimizer)
    optimizer.evolve(fitness_of(model))
    twin_model, twin = pickle.loads(pickle.dumps((model, optimizer)))
    for m, o in ((model, optimizer), (twin_model, twin)):
        train(m, o)
        o.evolve(fitness_of(m), 2)
    assert same(model, twin_model)
    assert repr(twin) == repr(optimizer)


def test_a_copy_of_a_scheduled_optimizer_steps_itself() -> None:
    model, optimizer = make()
    StepLR(optimizer, 1)  # puts a step of its own on the instance
    twin_model, twin = copy.deepcopy((model, optimizer))
    before = copy.deepcopy(model)
    train(twin_model, twin, 1)
    assert same(before, model)
    assert not same(before, twin_model)


# Hooks


def test_step_hooks_of_both_run_once() -> None:
    model, optimizer = make()
    log: list[tuple[str, type]] = []

    def hook(name: str) -> Any:
        return lambda o, args, kwargs: log.append((name, type(o)))

    handles = [
        optimizer.register_step_pre_hook(hook("pre")),
        optimizer.register_step_post_hook(hook("post")),
        optimizer.base.register_step_pre_hook(hook("base pre")),
        optimizer.base.register_step_post_hook(hook("base post")),
        register_optimizer_step_pre_hook(hook("global pre")),
        register_optimizer_step_post_hook(hook("global post")),
    ]
    try:
        train(model, optimizer, 1)
        assert len(log) == 6
        assert dict(log) == {
            "pre": Evolved,
            "post": Evolved,
            "base pre": SGD,
            "base post": SGD,
            "global pre": SGD,
            "global post": SGD,
        }
    finally:
        for handle in handles:
            handle.remove()
    log.clear()
    train(model, optimizer, 1)
    assert log == []


def test_a_step_pre_hook_may_change_the_arguments() -> None:
    _, optimizer = make()
    calls: list[str] = []

    def mine() -> float:
        calls.append("mine")
        return 0.0

    def other() -> float:
        calls.append("other")
        return 0.0

    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, other), kwargs))
    optimizer.step(mine)
    assert calls == ["other"]


def test_state_dict_hooks_run_once_and_may_change_the_state() -> None:
    model, optimizer = make()
    train(model, optimizer)
    log: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: log.append("pre"))
    optimizer.register_state_dict_post_hook(
        lambda o, state: log.append("post") or {**state, "extra": 1}
    )
    state = optimizer.state_dict()
    assert log == ["pre", "post"]
    assert state["extra"] == 1
    _, other = make()
    other.register_load_state_dict_pre_hook(
        lambda o, s: log.append("load pre") or {k: v for k, v in s.items() if k != "extra"}
    )
    other.register_load_state_dict_post_hook(lambda o: log.append("load post"))
    other.load_state_dict(state)
    assert log == ["pre", "post", "load pre", "load post"]
    assert same_state(other.base.state_dict(), optimizer.base.state_dict())


# Learning-rate schedulers (warnings are errors here: none may come)


SCHEDULERS: dict[str, tuple[Callable[..., Optimizer], Callable[[Optimizer], Any]]] = {
    "step": (BASES["sgd"], lambda o: StepLR(o, step_size=2, gamma=0.1)),
    "cosine": (BASES["adamw"], lambda o: CosineAnnealingLR(o, T_max=5)),
    "one cycle": (BASES["sgd"], lambda o: OneCycleLR(o, max_lr=0.1, total_steps=8)),
    "one cycle, adam": (BASES["adam"], lambda o: OneCycleLR(o, max_lr=0.1, total_steps=8)),
    "plateau": (BASES["sgd"], lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_do_to_it_what_they_do_to_the_base(name: str) -> None:
    base, schedule = SCHEDULERS[name]
    bare_model = network()
    bare = base(bare_model.parameters())
    model, optimizer = make(base)
    rates: dict[str, list[Any]] = {"bare": [], "evolved": []}
    for key, m, o in (("bare", bare_model, bare), ("evolved", model, optimizer)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler = schedule(o)
            for _ in range(5):
                train(m, o, 1)
                if name == "plateau":
                    scheduler.step(1.0)
                else:
                    scheduler.step()
                group = o.param_groups[0]
                rates[key].append((group["lr"], group.get("momentum"), group.get("betas")))
    assert rates["bare"] == rates["evolved"]
    assert len({rate for rate, *_ in rates["bare"]}) > 1
    assert same(bare_model, model)


def test_a_scheduler_resumes_with_it() -> None:
    model, optimizer = make()
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step()
    again, resumed = make()
    other = StepLR(resumed, 1, gamma=0.5)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    other.load_state_dict(through_a_file(scheduler.state_dict()))
    assert other.get_last_lr() == scheduler.get_last_lr() == [0.05 / 8]
    assert resumed.param_groups[0]["lr"] == 0.05 / 8
    train(again, resumed, 1)
    other.step()
    assert resumed.param_groups[0]["lr"] == 0.05 / 16


# Gradient scaling


@each_base
def test_a_grad_scaler_does_to_it_what_it_does_to_the_base(base: Callable[..., Optimizer]) -> None:
    bare_model = network()
    bare = base(bare_model.parameters())
    model, optimizer = make(base)
    scales = []
    for m, o in ((bare_model, bare), (model, optimizer)):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
        for i in range(4):
            o.zero_grad()
            loss = F.cross_entropy(m(X), Y) * (torch.inf if i == 1 else 1.0)
            scaler.scale(loss).backward()
            if i == 2:
                scaler.unscale_(o)
                nn.utils.clip_grad_norm_(m.parameters(), 0.1)
            scaler.step(o)
            scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [512.0, 512.0]  # halved once: the infinite gradient was seen
    assert same(bare_model, model)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not hasattr(optimizer.base, "grad_scale")
    assert "found_inf" not in vars(optimizer)


# What is refused


class NotAnOptimizer:
    param_groups: list[Any] = []  # noqa: RUF012


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Evolved(NotAnOptimizer(), ES), "torch.optim.Optimizer, got NotAnOptimizer"),  # type: ignore[arg-type]
    (lambda: Evolved(network().parameters(), ES), "torch.optim.Optimizer, got generator"),  # type: ignore[arg-type]
    (lambda: Evolved(make()[1], ES), "Evolved already: wrap its base"),
    (lambda: make(strategy=SGD), "expected a strategy such as"),
    (lambda: make(momentum="damp"), "'keep', 'reset' or a factor in .0, 1., got 'damp'"),
    (lambda: make(momentum=1.5), "got 1.5"),
    (lambda: make(momentum=-0.1), "got -0.1"),
    (lambda: make(momentum=float("nan")), "got nan"),
    (lambda: make(momentum=None), "got None"),
    (lambda: make(model=network()), "parameter 0.*not one of the model's"),
    (lambda: make(space=Only("head")), "'head'.* needs the model: pass model=, .*model=model.$"),
    (lambda: make(space=Only("norm")), "needs the model: pass model="),
    (lambda: make(space=Only(types=(nn.Linear,))), "needs the model: pass model="),
    (lambda: make(space=Only("0.*", buffers=True)), "needs the model: pass model="),
    (lambda: make(space=Only("*.weight")), "needs names: pass model=.*named_parameters"),
]


@pytest.mark.parametrize(("attempt", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused(attempt: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_globs_do_with_named_parameters_alone() -> None:
    model = network()
    base = SGD(model.named_parameters(), lr=0.1)
    optimizer = Evolved(base, ES, space=Only("2.*"), accept=Always())
    before = copy.deepcopy(model)
    optimizer.evolve(fitness_of(model))
    assert same(before[0], model[0])
    assert not same(before[2], model[2])
    with pytest.raises(ValueError, match="needs the model"):
        Evolved(SGD(model.named_parameters(), lr=0.1), ES, space=Only("head"))
