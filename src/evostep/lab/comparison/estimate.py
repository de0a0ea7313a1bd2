"""What a comparison will take: hours, timed on a few batches and generations, and disk."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.budget import arm_cost, trunk_cost
from evostep.lab.arms.evaluation import make_fitness
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.procedures.alternating import Alternating
from evostep.lab.arms.procedures.base import Learner, descent_cost
from evostep.lab.arms.seed_run import SeedRun, make_model
from evostep.lab.arms.training import PER_GRADIENT_EXAMPLE, make_optimizer, train_epoch
from evostep.lab.comparison.plan import Plan
from evostep.lab.data.parts import Parts, cut
from evostep.lab.storage import History

_PROBE_BATCHES = 3
_PROBE_GENERATIONS = 3
_PROBE_SECONDS = 20.0  # of one generation in place; what takes longer is reckoned, not timed


@dataclass(frozen=True)
class Estimate:
    """What a comparison will take.

    Attributes:
        gradient_seconds: for one example of a gradient step.
        forward_seconds: for one example scored in place.
        scored_seconds: arm label -> for one sample-forward of its evolution, by the engine that it
            will take.
        hours: in all.
        bytes: on disk, at most.
        runs: arm label -> (sample-forwards of a run, its hours without the trunk).
        trunk_hours: for one seed.
    """

    gradient_seconds: float
    forward_seconds: float
    scored_seconds: Mapping[str, float]
    hours: float
    bytes: int
    runs: Mapping[str, tuple[int, float]]
    trunk_hours: float


def estimate(plan: Plan) -> Estimate:
    """Time a few batches and generations, and reckon hours and disk; nothing is written."""
    options, sizes = plan.options, plan.sizes
    model = make_model(plan.options, plan.data, plan.seeds[0], plan.device)
    parts = cut(plan.data, plan.splits[plan.seeds[0]], plan.device)
    forward = _time_forwards(plan, model, parts)
    gradient = _time_gradients(plan, model, parts) if options.epochs else forward
    scored = {arm.label: _time_generations(plan, arm, parts, forward) for arm in plan.arms}

    def hours(arm: Arm, budget: int | None) -> float:
        """Return those of a run from the trunk on: gradient steps, scoring, evaluation."""
        trunk = trunk_cost(arm, sizes)
        own = max(1, arm_cost(arm, sizes) - trunk)
        gradients = (options.epochs - options.evolve_from) * descent_cost(arm.training, sizes)
        if arm.start is not None and arm.strategy is not None:
            gradients = 0
        gradients = min(own, gradients)
        longer = 1.0
        if budget is not None:
            before = trunk if arm.start is None else (arm.start.budget or trunk)
            longer = (budget - before) / own
        steps = gradients / PER_GRADIENT_EXAMPLE * gradient
        steps += (own - gradients) * scored[arm.label]
        evaluated = sizes.test + sizes.gradients(arm.training.all_data)
        evaluated += (arm.epochs - arm.schedule.start) * sizes.fitness
        return (longer * steps + evaluated * forward) / 3600

    epoch_seconds = (
        descent_cost(training, sizes) / PER_GRADIENT_EXAMPLE * gradient + sizes.fitness * forward
        for training, _ in plan.trunks.values()
    )
    trunk_hours = options.evolve_from * sum(epoch_seconds) / 3600
    trunk_hours += sum(hours(start.arm, start.budget) for start, _ in plan.starts.values())
    runs = {}
    for arm in plan.arms:
        budget = plan.budgets[arm.label]
        runs[arm.label] = (budget or arm_cost(arm, sizes), hours(arm, budget))
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    # weights and an optimizer's two moments, in each of two checkpoints and the one being written
    per_seed = 9 * (len(plan.trunks) + len(plan.starts) + len(plan.arms)) * weights
    total = len(plan.seeds) * (trunk_hours + sum(hours for _, hours in runs.values()))
    size = len(plan.seeds) * per_seed
    return Estimate(gradient, forward, scored, total, size, runs, trunk_hours)


def _time_gradients(plan: Plan, model: torch.nn.Module, parts: Parts) -> float:
    """Return the seconds of one example of a gradient step."""
    training = plan.arms[0].training
    optimizer = make_optimizer(training, model)
    took = 0.0
    for _ in range(2):  # the first steps of a process are slower
        began = time.perf_counter()
        _, forwards = train_epoch(
            model,
            optimizer,
            parts.train,
            plan.data,
            training,
            seed=0,
            epoch=0,
            max_forwards=PER_GRADIENT_EXAMPLE * _PROBE_BATCHES * training.batch,
            on_step=lambda _: None,
        )
        took = (time.perf_counter() - began) / (forwards / PER_GRADIENT_EXAMPLE)
    return took


def _time_forwards(plan: Plan, model: torch.nn.Module, parts: Parts) -> float:
    """Return the seconds of one example scored."""
    probe = parts.fitness if len(parts.fitness) else parts.test
    fitness = make_fitness(model, probe, plan.data, plan.options)
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        fitness()
        took = (time.perf_counter() - began) / len(probe)
    return took


def _time_generations(plan: Plan, arm: Arm, parts: Parts, forward: float) -> float:
    """Return the seconds of one sample-forward of an arm's evolution, by the engine it will take.

    The first generation is left out: engines are checked in it. A generation that would take long
    in place is not tried, nor a population's, which is scored in place; then it is `forward`.
    """
    if arm.strategy is None or not arm.schedule.evolution or not plan.options.epochs:
        return forward
    if PROCEDURES[arm.procedure].phase_cost(arm, plan.sizes, 1) * forward > _PROBE_SECONDS:
        return forward
    nowhere = Path(os.devnull)
    seed_run = SeedRun(
        plan.options, plan.seeds[0], parts, plan.sizes, plan.device, nowhere, History(nowhere)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will warn
        procedure = PROCEDURES[arm.procedure](
            seed_run, arm, Learner(seed_run, arm.training).state()
        )
        if not isinstance(procedure, Alternating):
            return forward
        train_epoch(  # one step: guides and mixtures need a past
            procedure.learner.model,
            procedure.learner.optimizer,
            parts.train,
            plan.data,
            arm.training,
            seed=0,
            epoch=0,
            max_forwards=1,
            on_step=lambda _: None,
        )
        if arm.mixes:
            procedure.evolved.remember()
        records = procedure.evolved.evolve(
            procedure.fitness, _PROBE_GENERATIONS, accept_on=procedure.accept_on
        )
    return min(record.seconds / max(1, record.sample_forwards) for record in records[1:])
