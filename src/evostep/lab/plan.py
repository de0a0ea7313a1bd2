"""A plan: everything that a comparison needs, checked before anything is written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evostep.errors import InputError
from evostep.lab.arms import Arm, Training, make_arms
from evostep.lab.budget import Sizes, arm_cost, budgets
from evostep.lab.data import ImageData, load_data
from evostep.lab.models import build_model
from evostep.lab.options import Options
from evostep.lab.splits import Splits, make_splits
from evostep.lab.training import cut, make_fitness, make_optimizer, resolve_metric, train_epoch
from evostep.metrics import make_metric
from evostep.naming import slots_of_module

# Options that a directory of results may be continued with, whatever they were before
_FREE = ("arms", "seeds", "threads", "device", "data_dir", "strategies")


@dataclass(frozen=True)
class Plan:
    """A comparison that can be run.

    Attributes:
        options: as given.
        arms: what is compared.
        data: loaded.
        splits: by seed.
        sizes: of the parts.
        budgets: by arm label; None: no common budget.
        device: where it runs.
    """

    options: Options
    arms: list[Arm]
    data: ImageData
    splits: Mapping[int, Splits]
    sizes: Sizes
    budgets: Mapping[str, int | None]
    device: torch.device

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(self.splits)

    @property
    def trunks(self) -> dict[str, tuple[Training, list[str]]]:
        """Key of each trunk -> its training, and the labels of the arms that branch from it."""
        found: dict[str, tuple[Training, list[str]]] = {}
        for arm in self.arms:
            found.setdefault(arm.training.key, (arm.training, []))[1].append(arm.label)
        return found

    def identity(self) -> dict[str, Any]:
        """Give what must be equal for two comparisons to share a directory."""
        config = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self.options).items()
            if name not in _FREE
        }
        arms = {arm.label: {**arm.describe(), "budget": self.budgets[arm.label]} for arm in self.arms}
        return {"options": config, "arms": arms}


def make_plan(options: Options) -> Plan:
    """Check everything and load the data; nothing is written.

    Raises:
        InputError: whatever is wrong with the options, in one line.
    """
    device = _device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    arms = make_arms(options)
    seeds = options.seed_list
    try:
        make_metric(resolve_metric(options.metric), higher_is_better=options.higher_is_better)
    except (ValueError, ImportError) as error:
        raise InputError(f"--metric {options.metric}: {error}") from error
    if options.init_from is not None and options.pretrained:
        raise InputError("--pretrained and --init-from exclude each other: leave one out")
    evolving = [arm.label for arm in arms if arm.strategy is not None]
    if evolving and options.fitness_size == 0:
        raise InputError(f"--fitness-size is 0, but {', '.join(evolving)} need examples to score on")
    data = load_data(options.data, options.data_dir, image_size=options.image_size)
    splits = {
        seed: make_splits(
            data,
            seed,
            train_size=options.train_size,
            fitness_size=options.fitness_size,
            accept_size=options.accept_size,
            test_size=options.test_size,
        )
        for seed in seeds
    }
    one = splits[seeds[0]]
    sizes = Sizes(len(one.train), len(one.fitness), len(one.accept), len(one.test))
    plan = Plan(
        options,
        arms,
        data,
        splits,
        sizes,
        budgets(arms, sizes, options.epochs, equal=options.equal_budget),
        device,
    )
    _check_spaces(plan)
    return plan


def _check_spaces(plan: Plan) -> None:
    """Build the model once, to find out now whether each arm's space finds its weights."""
    model = _build(plan)
    slots = slots_of_module(model)
    for arm in plan.arms:
        try:
            arm.space.touched(slots)
        except ValueError as error:
            raise InputError(f"arm {arm.label!r}: {error}") from error


def _build(plan: Plan) -> torch.nn.Module:
    options, data = plan.options, plan.data
    return build_model(
        options.model,
        channels=data.inputs.shape[1],
        classes=len(data.classes),
        image_size=data.inputs.shape[-1],
        seed=plan.seeds[0],
        pretrained=options.pretrained,
        init_from=options.init_from,
    ).to(plan.device)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}): try auto or cpu") from error
    return device


@dataclass(frozen=True)
class Estimate:
    """What a comparison will take.

    Attributes:
        gradient_seconds: for one example of a gradient step.
        forward_seconds: for one example scored.
        hours: in all.
        bytes: on disk in all.
        runs: arm label -> (sample-forwards of a run, its hours without the trunk).
        trunk_hours: for one seed.
    """

    gradient_seconds: float
    forward_seconds: float
    hours: float
    bytes: int
    runs: Mapping[str, tuple[int, float]]
    trunk_hours: float


def estimate(plan: Plan) -> Estimate:
    """Time a few batches and reckon hours and disk; nothing is written."""
    options, sizes = plan.options, plan.sizes
    model = _build(plan)
    parts = cut(plan.data, plan.splits[plan.seeds[0]], plan.device)
    training = plan.arms[0].training
    optimizer = make_optimizer(training, model)
    few = 3 * training.batch

    def train() -> int:
        _, forwards = train_epoch(
            model,
            optimizer,
            parts.train,
            plan.data,
            training,
            seed=0,
            epoch=0,
            max_forwards=3 * few,
            on_step=lambda forwards: None,
        )
        return forwards // 3

    train()  # the first steps of a process are slower
    began = time.perf_counter()
    gradient = -began + (train() and time.perf_counter())
    gradient /= max(1, min(few, sizes.train))
    probe = parts.fitness if len(parts.fitness) else parts.test
    fitness = make_fitness(model, probe, plan.data, options)
    fitness()
    began = time.perf_counter()
    fitness()
    forward = (time.perf_counter() - began) / len(probe)

    def hours(arm: Arm) -> float:
        """Of a run from the trunk on: its epochs, its generations, and what the budget adds."""
        epochs = options.epochs - options.evolve_from
        own = arm_cost(arm, sizes, options.epochs)
        examples = epochs * sizes.training(arm)
        scored = own - 3 * options.epochs * sizes.training(arm)
        factor = 1.0
        budget = plan.budgets[arm.label]
        if budget is not None:
            trunk = 3 * options.evolve_from * sizes.training(arm)
            factor = (budget - trunk) / max(1, own - trunk)
        looking = sizes.test + sizes.training(arm) + epochs * sizes.fitness
        return (factor * (examples * gradient + scored * forward) + looking * forward) / 3600

    trunk_hours = sum(
        options.evolve_from
        * (sizes.training(self_arm) * gradient + sizes.fitness * forward)
        / 3600
        for self_arm in {arm.training.key: arm for arm in plan.arms}.values()
    )
    runs = {
        arm.label: (plan.budgets[arm.label] or arm_cost(arm, sizes, options.epochs), hours(arm))
        for arm in plan.arms
    }
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    per_seed = len(plan.trunks) * (options.evolve_from + 3) * weights + 4 * len(plan.arms) * weights
    total = len(plan.seeds) * (trunk_hours + sum(hours for _, hours in runs.values()))
    return Estimate(
        gradient, forward, total, len(plan.seeds) * per_seed, runs, trunk_hours
    )
