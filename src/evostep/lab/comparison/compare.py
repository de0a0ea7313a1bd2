"""A comparison: seeds x arms, arms of a seed branching from one trunk, results as they come."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from evostep.errors import counted
from evostep.lab.arms.arm import Arm
from evostep.lab.arms.budget import arm_cost, trunk_cost
from evostep.lab.arms.methods import METHODS
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.seed_run import SeedRun, Watch, run_directory
from evostep.lab.checkpoints import drop_checkpoint
from evostep.lab.claims import claimed
from evostep.lab.comparison.directory import (
    Runs,
    check_directory,
    finished_runs,
    register,
    write_results,
)
from evostep.lab.comparison.environment import describe_environment
from evostep.lab.comparison.estimate import Estimate
from evostep.lab.comparison.plan import Plan
from evostep.lab.comparison.progress import show_progress
from evostep.lab.comparison.run import CHECKPOINT, run_arm, run_start, run_trunk
from evostep.lab.data.parts import cut
from evostep.lab.data.splits import describe_classes
from evostep.lab.report.page import ReportPaths, write_report
from evostep.lab.report.wording import duration, forwards, of_budget
from evostep.lab.storage import History, write_json


def compare(
    plan: Plan, directory: Path, console: Console, *, every_step: bool = False
) -> ReportPaths:
    """Run what is missing of a comparison and write table, figures and page.

    Finished runs are never repeated; a run that was cut off goes on from its last checkpoint.

    Args:
        plan: of the comparison.
        directory: of its results.
        console: of progress; a quiet one is told nothing.
        every_step: whether plain lines of progress tell each step, or one in ten seconds.

    Raises:
        InputError: the directory holds results of another configuration or a corrupt file, or
            another process is at work in it.
        DiskError: the disk is full.
    """
    check_directory(plan, directory)
    with claimed(directory):
        runs = finished_runs(directory)
        register(plan, directory)
        if classes := describe_classes(plan.data, plan.splits[plan.seeds[0]]):
            console.print(classes, markup=False, highlight=False, soft_wrap=True)
        if runs:
            found = f"{counted(len(runs), 'finished run')} found in {directory}: they are kept"
            console.print(found, markup=False, highlight=False, soft_wrap=True)
        with show_progress(_total_forwards(plan, runs), console, every_step=every_step) as watch:
            _run_missing(plan, directory, runs, watch)
        write_results(plan, directory, runs)
        return write_report(directory)


def _run_missing(plan: Plan, directory: Path, runs: Runs, watch: Watch) -> None:
    """Run what is missing, and add it to the runs that are finished."""
    history = History(directory / "history.jsonl")
    environment = describe_environment(plan.device)
    for label, seed in runs:  # of one that was killed when its result was there
        drop_checkpoint(run_directory(directory, label, seed) / CHECKPOINT)
    for seed in plan.seeds:
        missing = [arm for arm in plan.arms if (arm.label, seed) not in runs]
        if not missing:
            continue
        parts = cut(plan.data, plan.splits[seed], plan.device)
        seed_run = SeedRun(
            plan.options, seed, parts, plan.sizes, plan.device, directory, history, watch
        )
        branches: dict[str, Path] = {}
        for arm in missing:
            trunk = _branch(plan, seed_run, arm, branches)
            result = run_arm(seed_run, arm, trunk, plan.budgets[arm.label])
            result["environment"] = environment
            folder = run_directory(directory, arm.label, seed)
            write_json(folder / "result.json", result)
            drop_checkpoint(folder / CHECKPOINT)
            runs[arm.label, seed] = result
            write_results(plan, directory, runs)


def _branch(plan: Plan, seed_run: SeedRun, arm: Arm, done: dict[str, Path]) -> Path:
    """Return the checkpoint where an arm begins: of its trunk or start, run where it is not yet.

    Args:
        plan: of the comparison.
        seed_run: of the seed.
        arm: of the comparison, or where one of them starts.
        done: name of a trunk or start -> its checkpoint, of those that were run; it is added to.
    """
    start = arm.start
    name = f"trunk {arm.training.key}" if start is None else f"start {start.name}"
    if name not in done:
        if start is None:
            done[name] = run_trunk(seed_run, *plan.trunks[arm.training.key])
        else:
            trunk = _branch(plan, seed_run, start.arm, done)
            done[name] = run_start(seed_run, *plan.starts[start.name], trunk)
    return done[name]


def plan_facts(plan: Plan, guess: Estimate) -> dict[str, Any]:
    """Return arms, budgets, expected hours and disk, as plain data."""
    return {
        "data": plan.data.title,
        "model": plan.options.model,
        "device": str(plan.device),
        "sizes": dataclasses.asdict(plan.sizes),
        "seeds": plan.seeds,
        "arms": {
            label: {"sample_forwards": forwards, "hours": hours}
            for label, (forwards, hours) in guess.runs.items()
        },
        "trunks": len(plan.trunks),
        "trunk_hours": guess.trunk_hours,
        "hours": guess.hours,
        "bytes": guess.bytes,
    }


def describe_plan(plan: Plan, guess: Estimate, kept: int = 0) -> str:
    """Return arms, budgets, expected hours and disk, for people; `kept` runs are finished."""
    sizes, options = plan.sizes, plan.options
    lines: list[str] = []
    say = lines.append
    say(
        f"{plan.data.title}: {sizes.train} train, {sizes.fitness} fitness, {sizes.accept} accept, "
        f"{sizes.test} test; model {options.model}; device {plan.device}"
    )
    if classes := describe_classes(plan.data, plan.splits[plan.seeds[0]]):
        say(classes)
    if not sizes.accept and any(METHODS[arm.method].evolves for arm in plan.arms):
        say("no accept examples: evolution keeps what is better on those that it selects on")
    say(
        f"{counted(len(plan.seeds), 'seed')}: {', '.join(map(str, plan.seeds))}; "
        f"{counted(options.epochs, 'epoch')}, evolution from {options.evolve_from}"
    )
    say(
        f"timed: {1 / guess.gradient_seconds:.0f} examples/s in gradient steps, "
        f"{1 / guess.forward_seconds:.0f} scored in place"
    )
    for arm in plan.arms:
        budget, hours = guess.runs[arm.label]
        own = arm_cost(arm, sizes)
        more = f" (its epochs: {own:,}; the rest goes into further ones)" if own < budget else ""
        say(f"  {arm.label}: {forwards(budget)}{more}, {duration(hours * 3600)} after the trunk")
    trunks = f"{counted(len(plan.trunks), 'trunk')} (the epochs that arms share)"
    say(f"{trunks}: {duration(guess.trunk_hours * 3600)} a seed, in all")
    say(f"in all: {duration(guess.hours * 3600)}, {guess.bytes / 1e6:.1f} MB on disk at most")
    if kept:
        say(f"{counted(kept, 'run')} of these are finished: they are kept and not run again")
    if len(shares := set(plan.budgets.values())) == 1 and (common := shares.pop()):
        most = max(PROCEDURES[arm.procedure].excess(arm, sizes) for arm in plan.arms)
        say(of_budget(common, "they may spend", common, common + most))
    return "\n".join(lines)


def _total_forwards(plan: Plan, runs: Runs) -> int:
    """Return what is to be spent: trunks once for each seed, and each arm from its trunk on."""
    total = 0
    for seed in plan.seeds:
        shared: dict[str, int] = {}
        for arm in plan.arms:
            if (arm.label, seed) not in runs:
                total += _own_forwards(plan, arm, plan.budgets[arm.label], shared)
        total += sum(shared.values())
    return total


def _own_forwards(plan: Plan, arm: Arm, budget: int | None, shared: dict[str, int]) -> int:
    """Return what an arm spends beyond its trunk, or start; note what that takes, by its name."""
    whole = budget or arm_cost(arm, plan.sizes)
    if arm.start is None:
        shared[arm.training.key] = before = trunk_cost(arm, plan.sizes)
    else:
        before = arm.start.budget or arm_cost(arm.start.arm, plan.sizes)
        own = _own_forwards(plan, arm.start.arm, arm.start.budget, shared)
        shared[f"start {arm.start.name}"] = own
    return max(0, whole - before)
