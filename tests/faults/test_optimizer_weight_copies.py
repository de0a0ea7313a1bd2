"""Copies of the weights in an optimizer's state move with them: its next step undoes nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evostep import ESGD, AllWeights, Evolved, Fitness, OpenAIES, PairedTest, RandomMutation, Span
from evostep.weight_copies import moved

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Kept(torch.optim.Optimizer):
    """Keeps a copy in its state, under any name, and writes the weights from it."""

    def __init__(self, params: Any, lr: float, key: str = "master", pull: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})
        self.key, self.pull = key, pull

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p].setdefault(self.key, p.detach().float().clone())
                kept.add_(p.grad.float(), alpha=-group["lr"])
                kept.lerp_(p.float(), 1 - self.pull)
                p.copy_(kept)


class Inner(torch.optim.Optimizer):
    """A wrapper: the copy is in the state of the optimizer within."""

    def __init__(self, params: Any, lr: float) -> None:
        params = list(params)
        self.optimizer = Kept(params, lr)
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        self.optimizer.step()


def train(model: nn.Module, optimizer: Any, steps: int = 1, graph: bool = False) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        dtype = next(model.parameters()).dtype
        F.cross_entropy(model(X.to(dtype)).float(), Y).backward(create_graph=graph)
        optimizer.step()


def fitness_of(model: nn.Module) -> Fitness:
    dtype = next(model.parameters()).dtype
    return Fitness(model, [(X.to(dtype), Y)], "neg-loss")


def after_a_step_of_lr_0(
    make: Callable[..., Any], *, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[float, float, float]:
    """Fitness before evolution, after it, and after one more step."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(dtype)
    optimizer = Evolved(make(model.parameters()), RandomMutation(0.3, population=8), **options)
    fitness = fitness_of(model)
    train(model, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = fitness()
    optimizer.evolve(fitness, 5)
    evolved = fitness()
    train(model, optimizer)
    return before, evolved, fitness()


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.0),
        lambda ps: Kept(ps, 0.1),
        lambda ps: Kept(ps, 0.1, "slow", pull=0.5),
        lambda ps: Kept(ps, 0.1, "of another name"),
        lambda ps: Inner(ps, 0.0),
        lambda ps: torch.optim.ASGD(ps, lr=0.0, t0=0),
    ],
    ids=["plain", "master", "slow weights", "found by equality", "wrapped", "ASGD"],
)
def test_a_step_of_lr_0_leaves_what_evolution_gained(make: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before, evolved, after = after_a_step_of_lr_0(make)
    assert evolved > before + 0.05
    assert after == pytest.approx(evolved, abs=1e-6)


def test_a_float32_master_of_16_bit_weights_still_rounds_to_them() -> None:
    make = lambda ps: Kept(ps, 0.1)  # noqa: E731
    before, evolved, after = after_a_step_of_lr_0(make, dtype=torch.bfloat16)
    assert evolved > before
    assert after == evolved


def test_what_it_holds_beyond_the_weights_rounding_is_kept() -> None:
    master = torch.tensor([1.001, 2.0])
    weights, evolved = master.bfloat16(), torch.tensor([1.5, 0.003]).bfloat16()
    there = moved(master, weights, evolved)
    assert torch.equal(there.bfloat16(), evolved)
    assert there[0] == pytest.approx(1.501, abs=1e-6)


@pytest.mark.parametrize("inherit", ["state", "fresh"])
@pytest.mark.parametrize("key", ["slow", "of another name"])
def test_a_newborns_copies_are_of_its_own_weights(key: str, inherit: Any) -> None:
    models = []
    for i in range(3):
        torch.manual_seed(i)
        models.append(nn.Linear(4, 3))
    pairs = [(model, Kept(model.parameters(), 0.1, key)) for model in models]
    fitness = fitness_of(models[0])
    population = ESGD(pairs, fitness, offspring=9, parents=2, elite=2, sigma=0.3, inherit=inherit)
    for model, optimizer in pairs:
        train(model, optimizer)
    assert any(record.accepted for record in population.evolve(3))
    for one in population.individuals:
        for group in one.optimizer.param_groups:
            group["lr"] = 0.0
        before = [p.detach().clone() for p in one.model.parameters()]
        train(one.model, one.optimizer)
        for p, was in zip(one.model.parameters(), before, strict=True):
            assert torch.equal(p, was)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_tensors_are_no_copies(value: float) -> None:
    """A moment that is zero is equal to a bias that was initialised with zeros."""
    p = nn.Parameter(torch.full((3,), value))
    base = torch.optim.SGD([p], lr=0.0)
    base.state[p]["unknown"] = torch.full((3,), value)
    Evolved(base, OpenAIES(0.1, lr=0.1, population=4)).evolve(lambda: float(p.sum()), 2)
    assert not torch.equal(p, torch.full((3,), value))
    assert torch.equal(base.state[p]["unknown"], torch.full((3,), value))


def test_a_rejected_phase_leaves_the_copies_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    base = Kept(model.parameters(), 0.1, "slow", pull=0.5)
    strategy = RandomMutation(0.3, population=4)
    optimizer = Evolved(base, strategy, accept=PairedTest(alpha=1e-9))
    fitness = Fitness(model, [(X, Y)], "accuracy")
    train(model, optimizer, 3)
    base.state[model.weight]["slow"].add_(0.01)
    before = copy.deepcopy(base.state_dict())
    records = optimizer.evolve(fitness, 3, accept_on=fitness_of_others(model))
    assert records[-1].verdict is not None
    assert not records[-1].verdict.accepted
    for one, other in zip(
        before["state"].values(), base.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(one["slow"], other["slow"])


def fitness_of_others(model: nn.Module) -> Fitness:
    return Fitness(model, [(X.flip(0), Y.flip(0))], "accuracy")


def test_saved_in_on_generation_it_goes_on_with_the_same_bits() -> None:
    def make() -> tuple[nn.Module, Evolved]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        base = Kept(model.parameters(), 0.1, "slow", pull=0.5)
        return model, Evolved(base, RandomMutation(0.3, population=4), model=model)

    saved: list[Any] = []
    model, optimizer = make()
    train(model, optimizer, 2)
    optimizer.evolve(
        fitness_of(model),
        4,
        on_generation=lambda _: saved.append(
            copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        ),
    )
    twin, resumed = make()
    twin.load_state_dict(saved[1][0])
    resumed.load_state_dict(saved[1][1])
    resumed.evolve(fitness_of(twin), 2)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(optimizer.state[one]["slow"], resumed.state[other]["slow"])


@pytest.mark.parametrize("space", [AllWeights(), Span()], ids=["all weights", "span"])
def test_in_any_space(space: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    base = Kept(model.parameters(), 0.1)
    optimizer = Evolved(base, RandomMutation(0.3, population=8), space=space, model=model)
    for _ in range(3):
        train(model, optimizer, 3)
        if isinstance(space, Span):
            optimizer.remember()
    optimizer.evolve(fitness_of(model), 3)
    for p in model.parameters():
        assert torch.equal(p, base.state[p]["master"])


def test_what_is_merely_like_the_weights_is_told_once() -> None:
    torch.manual_seed(0)
    model = nn.Linear(40, 3)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        base.state[p]["elsewhere"] = p.detach() * 0.9 + 0.001
    optimizer = Evolved(base, RandomMutation(0.1, population=2))
    with pytest.warns(UserWarning, match=r"state 'elsewhere' of SGD looks like a copy") as told:
        optimizer.evolve(lambda: 0.0)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.evolve(lambda: 0.0)


TORCHS: dict[str, Callable[..., Any]] = {
    name: one
    for name, one in vars(torch.optim).items()
    if isinstance(one, type) and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
}


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_own_raise_no_alarm(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = Evolved(
        TORCHS[name](model.parameters(), lr=0.01), RandomMutation(0.1, population=2)
    )
    train(model, optimizer, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.evolve(fitness_of(model), 1)


# What a step of lr 0 does by itself, or why there is none.
OTHERWISE = {
    "a2grad": "takes no account of lr: moves by its own schedule",
    "adafactor": "scales lr by its own schedule, which has a floor",
    "adahessian": "needs create_graph in backward",
    "adalomo": "is made of a model, and steps within backward",
    "adammini": "is made of a model",
    "apollodqn": "decoupled from lr in its first steps",
    "laprop": "divides by a power of lr",
    "lomo": "is made of a model, and steps within backward",
    "madgrad": "adds eps to lr",
    "nero": "projects rows to their first norm at each step",
    "ftrl": "computes weights from sums that are divided by lr: told in a warning",
    "asgd": "divides by lr",
    "alig": "needs a closure",
    "lbfgs": "needs a closure",
    "bsam": "needs the number of examples, and a closure",
    "ranger21": "needs the number of iterations",
    "demo": "needs a process group",
    "sophiah": "needs create_graph in backward",
    "spectralsphere": "matrices only",
    **dict.fromkeys(
        ("adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon"),
        "needs groups marked use_muon",
    ),
    "accsgd": "moves at lr 0: mixes with its long step",
    **dict.fromkeys(
        ("schedulefreesgd", "schedulefreeadamw", "schedulefreeradam"),
        "averages on at lr 0, towards z: test_schedule_free",
    ),
}


@pytest.mark.slow
def test_every_optimizer_of_pytorch_optimizer_that_takes_lr_0() -> None:
    names = pytest.importorskip("pytorch_optimizer").get_supported_optimizers()
    apart = []
    for name in sorted(set(names) - OTHERWISE.keys()):
        kind = pytest.importorskip("pytorch_optimizer").load_optimizer(name)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = Evolved(kind(model.parameters(), lr=1e-3), RandomMutation(0.1, population=8))
        fitness = fitness_of(model)
        train(model, optimizer, 7)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.evolve(fitness, 6)
        evolved = fitness()
        train(model, optimizer, 2)
        if abs(fitness() - evolved) > 1e-5:
            apart.append(name)
    assert apart == []


@pytest.mark.slow
def test_lookahead_of_pytorch_optimizer() -> None:
    package = pytest.importorskip("pytorch_optimizer")

    def make(ps: Any) -> Any:
        return package.Lookahead(torch.optim.SGD(ps, lr=0.1), k=1, alpha=0.5)

    _, evolved, after = after_a_step_of_lr_0(make)
    assert after == pytest.approx(evolved, abs=1e-6)


@pytest.mark.slow
def test_schedule_free() -> None:
    package = pytest.importorskip("schedulefree")
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    base = package.AdamWScheduleFree(model.parameters(), lr=1e-6)
    optimizer = Evolved(base, RandomMutation(0.3, population=16))
    optimizer.train()  # type: ignore[call-arg]
    train(model, optimizer, 5)
    optimizer.eval()  # type: ignore[attr-defined]
    fitness = fitness_of(model)
    optimizer.evolve(fitness, 10)
    evolved = fitness()
    optimizer.train()  # type: ignore[call-arg]
    train(model, optimizer, 20)
    optimizer.eval()  # type: ignore[attr-defined]
    assert fitness() == pytest.approx(evolved, abs=1e-3)
