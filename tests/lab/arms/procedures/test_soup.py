"""Controls that average or sharpen: each against a slow twin."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.precedence import make_arms
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.procedures.base import Learner, Procedure
from evostep.lab.arms.procedures.moving_average import MovingAverage
from evostep.lab.arms.procedures.soup import MEMORY, GreedySoup, UniformSoup
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.arms.training import make_optimizer, train_epoch
from evostep.lab.data.parts import Part, Parts, Sizes
from evostep.lab.models import build_model
from evostep.lab.options import Options
from evostep.lab.storage import History


def procedure_of(
    method: str, parts: Parts, directory: Path, **options: Any
) -> tuple[Procedure, Arm, Counters]:
    chosen = Options(
        **{"arms": method, "lr": 0.1, "batch": 32, "epochs": 4, "evolve_from": 0, **options}
    )
    (arm,) = make_arms(chosen)
    sizes = Sizes(
        len(parts.train),
        len(parts.fitness),
        len(parts.accept),
        len(parts.test),
        calibration=len(parts.train),
    )
    history = History(directory / "history.jsonl")
    device = torch.device("cpu")
    seed_run = SeedRun(chosen, 0, parts, sizes, device, directory, history)
    trunk = Learner(seed_run, arm.training).state()
    return PROCEDURES[arm.procedure](seed_run, arm, trunk), arm, Counters()


def test_a_moving_average_follows_each_step(parts: Parts, tmp_path: Path) -> None:
    procedure, _, counters = procedure_of("ema", parts, tmp_path, ema_decay=0.6)
    assert isinstance(procedure, MovingAverage)
    model = procedure.learner.model
    slow = [w.detach().clone() for w in model.parameters()]
    steps = 0

    def follow(*_: Any) -> None:
        nonlocal steps
        steps += 1
        decay = min(0.6, (1 + steps) / (10 + steps))
        for average, weights in zip(slow, model.parameters(), strict=True):
            average.copy_(decay * average + (1 - decay) * weights.detach())

    procedure.learner.optimizer.register_step_post_hook(follow)
    procedure.epoch(counters, None)
    procedure.epoch(counters, None)
    assert steps > 5
    found = procedure.finish(counters)
    for average, weights in zip(slow, found.parameters(), strict=True):
        torch.testing.assert_close(weights.detach(), average)
    assert any(not torch.equal(a, b) for a, b in zip(slow, model.parameters(), strict=True))


def test_a_uniform_soup_is_the_mean_of_all_checkpoints(parts: Parts, tmp_path: Path) -> None:
    procedure, _, counters = procedure_of("uniform-soup", parts, tmp_path, model="small-cnn")
    assert isinstance(procedure, UniformSoup)
    seen = [copy.deepcopy(procedure.learner.model.state_dict())]
    for _ in range(3):
        procedure.epoch(counters, None)
        seen.append(copy.deepcopy(procedure.learner.model.state_dict()))
    spent = counters.forwards
    model = procedure.finish(counters)
    for name, weights in model.named_parameters():
        mean = torch.stack([state[name] for state in seen]).mean(0)
        torch.testing.assert_close(weights.detach(), mean)
    assert counters.forwards - spent == min(500, len(parts.train))  # BatchNorm, once
    means = [name for name in seen[0] if name.endswith("running_mean")]
    assert means
    assert not torch.equal(model.state_dict()[means[0]], seen[-1][means[0]])


def test_a_greedy_soup_takes_what_helps_and_nothing_else(parts: Parts, tmp_path: Path) -> None:
    """Checkpoints of a run and one that is spoilt: the slow twin tries them by hand."""
    procedure, arm, counters = procedure_of("greedy-soup", parts, tmp_path, model="mlp", lr=0.5)
    assert isinstance(procedure, GreedySoup)
    for _ in range(4):
        procedure.epoch(counters, None)
    states = [one.weights for one in procedure.checkpoints]
    noise = {name: torch.randn_like(w) * 3 for name, w in states[0].items()}
    procedure.checkpoints.add({name: states[-1][name] + noise[name] for name in noise})
    states = [one.weights for one in procedure.checkpoints]
    spent = counters.forwards
    model = procedure.finish(counters)
    twin = build_model("mlp", channels=1, classes=10, image_size=8, seed=0)
    images = parts.data.normalise(parts.fitness.images)

    def score(chosen: list[Any]) -> float:
        mean = {n: torch.stack([s[n].double() for s in chosen]).mean(0).float() for n in chosen[0]}
        twin.load_state_dict(mean)
        with torch.no_grad():
            return float((twin.eval()(images).argmax(1) == parts.fitness.targets).double().mean())

    order = sorted(states, key=lambda s: -score([s]))
    chosen, best = [order[0]], score([order[0]])
    for state in order[1:]:
        if (value := score([*chosen, state])) >= best:
            chosen, best = [*chosen, state], value
    score(chosen)
    for mine, slow in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), slow.detach())
    assert 1 <= len(chosen) < len(states)
    k, n = len(states), len(parts.fitness)
    assert counters.forwards - spent == k * n + (k - 1) * n
    assert arm.epochs + 1 <= MEMORY


@pytest.mark.parametrize("method", ["uniform-soup", "greedy-soup"])
@pytest.mark.parametrize(("model", "epochs"), [("mlp", 10), ("mlp", 2.4), ("small-cnn", 2.4)])
def test_soups_end_at_their_budget_however_many_checkpoints_there_are(
    method: str, model: str, epochs: float, parts: Parts, tmp_path: Path
) -> None:
    budget = int(epochs * 3 * len(parts.train))
    procedure, _, counters = procedure_of(method, parts, tmp_path, model=model)
    while not procedure.finished(counters, budget):
        procedure.epoch(counters, budget)
    procedure.finish(counters)
    # one step; where another checkpoint has come, what trying it takes
    candidate = 2 * len(parts.fitness) + len(parts.train)
    assert budget <= counters.forwards < budget + 3 * 34 + candidate * (method == "greedy-soup")


def sam_twin(model: nn.Module, images: Any, targets: Any, lr: float, rho: float) -> list[Any]:
    """Equations 2 and 3 of the paper, for one step of plain SGD."""
    weights = list(model.parameters())
    first = torch.autograd.grad(F.cross_entropy(model(images), targets), weights)
    norm = torch.sqrt(sum((g**2).sum() for g in first))  # type: ignore[arg-type]
    with torch.no_grad():
        moved = [w + rho * g / norm for w, g in zip(weights, first, strict=True)]
        kept = [w.clone() for w in weights]
        for w, m in zip(weights, moved, strict=True):
            w.copy_(m)
    second = torch.autograd.grad(F.cross_entropy(model(images), targets), weights)
    return [(w - lr * g).detach() for w, g in zip(kept, second, strict=True)]


@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
def test_sam_is_the_gradient_where_the_loss_nearby_is_highest(name: str, parts: Parts) -> None:
    few = Part(parts.train.images[:32], parts.train.targets[:32])
    (arm,) = make_arms(Options(arms="sam", lr=0.1, momentum=0.0, batch=32, sam_rho=0.2))
    model = build_model(name, channels=1, classes=10, image_size=8, seed=0)
    before = copy.deepcopy(model)
    optimizer = make_optimizer(arm.training, model)
    _, forwards = train_epoch(
        model,
        optimizer,
        few,
        parts.data,
        arm.training,
        seed=0,
        epoch=0,
        max_forwards=None,
        on_step=lambda _: None,
    )
    assert forwards == 2 * 3 * 32
    images, twin = parts.data.normalise(few.images), copy.deepcopy(before)
    expected = sam_twin(twin, images, few.targets, lr=0.1, rho=0.2)
    for weights, slow in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weights.detach(), slow, rtol=1e-4, atol=1e-6)
    before.train()(images)  # statistics are of the weights it keeps, and once
    for buffer, once in zip(model.buffers(), before.buffers(), strict=True):
        torch.testing.assert_close(buffer, once)


def test_a_cosine_falls_from_the_first_step_to_the_last(parts: Parts, tmp_path: Path) -> None:
    procedure, arm, counters = procedure_of(
        "sgd-cosine", parts, tmp_path, equal_budget=False, epochs=4
    )
    learner = procedure.learner
    object.__setattr__(learner.training, "span", (0, arm.epochs))
    rates: list[float] = []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    while not procedure.finished(counters, None):
        procedure.epoch(counters, None)
    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert rates[len(rates) // 2] == pytest.approx(0.05, rel=1e-6)
    assert 0 < rates[-1] < 0.1 / 50
