"""A loop of one's own with all that stands in one: every scheduler, AMP, accumulation, compile."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from evostep import Evolved, Fitness
from evostep.integrations import evolve

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.95**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
}


def test_no_scheduler_of_torch_is_left_out() -> None:
    public = {name for name in lr_scheduler.__all__ if name != "LRScheduler"}
    assert public <= {*SCHEDULERS, "SWALR"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_does_as_on_the_optimizer_inside(
    name: str, make_network: Any, strategy: Any, digits: Any
) -> None:
    """The same rates, with phases of evolution between; and the same after a resume."""

    def rates(wrap: bool, resume_at: int | None = None) -> list[float]:
        model = make_network()
        base = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
        optimizer: Any = Evolved(base, strategy) if wrap else base
        scheduler = SCHEDULERS[name](optimizer)
        fitness = Fitness(model, [digits.other.tensors], "neg-loss")
        found = []
        for step in range(9):
            if step == resume_at:
                states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                base = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
                optimizer = Evolved(base, strategy)
                scheduler = SCHEDULERS[name](optimizer)
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
            optimizer.step()
            found.append(float(optimizer.param_groups[0]["lr"]))
            # a loss that no longer falls, whatever the weights
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            if wrap and step % 4 == 1:
                assert len(optimizer.evolve(fitness, 1)) == 1
        return found

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step|To get the last")
        warnings.filterwarnings("ignore", "The epoch parameter|Please pass")
        plain = rates(wrap=False)
        assert rates(wrap=True) == plain
        assert rates(wrap=True, resume_at=4) == plain
    assert len(set(plain)) > 1


class Loop:
    """Autocast, GradScaler, two batches to a step, clipping, a scheduler, evolution; resumable."""

    def __init__(self, parts: Any, compiled: str | None = None) -> None:
        make_network, strategy, self.digits = parts
        self.model = make_network()
        self.forward = torch.compile(self.model, backend=compiled) if compiled else self.model
        base = torch.optim.AdamW(self.forward.named_parameters(), lr=0.01)
        self.optimizer = Evolved(base, strategy, momentum=0.5)
        self.scheduler = lr_scheduler.CosineAnnealingLR(self.optimizer, 8)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
        self.fitness = Fitness(self.model, [self.digits.other.tensors], "neg-loss")
        self.moved = 0

    def state(self) -> dict[str, Any]:
        parts = ("model", "optimizer", "scheduler", "scaler")
        return {name: getattr(self, name).state_dict() for name in parts}

    def load(self, path: Path) -> None:
        for name, state in torch.load(path, weights_only=True).items():
            getattr(self, name).load_state_dict(state)

    def steps(self, first: int, last: int) -> None:
        inputs, targets = self.digits.train.tensors
        for step in range(first, last):
            self.optimizer.zero_grad()
            for half in (0, 16):
                at = step % 10 * 32 + half
                with torch.autocast("cpu", torch.bfloat16):
                    outputs = self.forward(inputs[at : at + 16])
                    loss = F.cross_entropy(outputs, targets[at : at + 16]) / 2
                self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if step % 5 == 4:
                self.scheduler.step()
                before = copy.deepcopy(self.model.state_dict())
                evolve(self.optimizer, self.fitness, 2)
                now = self.model.state_dict()
                self.moved += not all(torch.equal(before[name], now[name]) for name in now)


@pytest.fixture
def parts(make_network: Any, strategy: Any, digits: Any) -> Any:
    return make_network, strategy, digits


@pytest.mark.parametrize("compiled", [None, "aot_eager"])
def test_twenty_steps_and_twenty_are_forty(
    parts: Any, compiled: str | None, tmp_path: Path, same: Any
) -> None:
    whole, half, rest = (Loop(parts, compiled) for _ in range(3))
    whole.steps(0, 40)
    half.steps(0, 20)
    torch.save(half.state(), tmp_path / "state.pt")
    rest.load(tmp_path / "state.pt")
    rest.steps(20, 40)
    assert whole.moved > 0
    assert whole.scaler.get_scale() > 2.0**10
    same(whole.state(), rest.state())


def test_an_overflow_skips_the_step_and_not_the_evolution(parts: Any) -> None:
    loop = Loop(parts)
    loop.steps(0, 1)
    weights = copy.deepcopy(loop.model.state_dict())
    loop.optimizer.zero_grad()
    inputs, targets = loop.digits.train.tensors
    scale = loop.scaler.get_scale()
    loop.scaler.scale(F.cross_entropy(loop.model(inputs), targets) * float("inf")).backward()
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()
    assert loop.scaler.get_scale() == scale / 2
    assert all(torch.equal(weights[n], p) for n, p in loop.model.state_dict().items())
    assert len(evolve(loop.optimizer, loop.fitness, 1)) == 1


def test_a_compiled_model_runs_the_evolved_weights(parts: Any, digits: Any) -> None:
    """And is not compiled again for it."""
    loop = Loop(parts, "aot_eager")
    loop.steps(0, 5)
    inputs = digits.valid.tensors[0]
    with torch.no_grad():
        for _ in range(2):
            loop.forward(inputs)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        evolve(loop.optimizer, loop.fitness, 3)
        assert torch.allclose(loop.forward(inputs), loop.model(inputs), atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
