"""A comparison: seeds x arms, arms of a seed branching from one trunk, results as they come."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from evostep.errors import counted
from evostep.lab.arms.arm import Arm
from evostep.lab.arms.budget import arm_cost, trunk_cost
from evostep.lab.arms.methods import METHODS
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.seed_run import Watch, run_directory
from evostep.lab.checkpoints import drop_checkpoint
from evostep.lab.claims import claimed
from evostep.lab.comparison.directory import (
    Runs,
    check_directory,
    finished_runs,
    register,
    write_results,
)
from evostep.lab.comparison.estimate import Estimate
from evostep.lab.comparison.executors import EXECUTORS, Execution
from evostep.lab.comparison.executors.base import Worker, describe_work
from evostep.lab.comparison.graph import make_graph, undone
from evostep.lab.comparison.histories import Histories
from evostep.lab.comparison.plan import Plan
from evostep.lab.comparison.progress import show_progress
from evostep.lab.comparison.run import CHECKPOINT
from evostep.lab.data.splits import describe_classes
from evostep.lab.report.page import ReportPaths, write_report
from evostep.lab.report.wording import duration, forwards, of_budget


def compare(
    plan: Plan,
    directory: Path,
    console: Console,
    *,
    every_step: bool = False,
    how: Execution | None = None,
) -> ReportPaths:
    """Run what is missing of a comparison and write table, figures and page.

    Finished runs are never repeated; a run that was cut off goes on from its last checkpoint.

    Args:
        plan: of the comparison.
        directory: of its results.
        console: of progress; a quiet one is told nothing.
        every_step: whether plain lines of progress tell each step, or one in ten seconds.
        how: where runs are done, and how many at once; None: here, one after the other.

    Raises:
        InputError: the directory holds results of another configuration or a corrupt file, or
            another process is at work in it; or runs cannot be done there.
        DiskError: the disk is full.
        LostError: processes that did runs died.
    """
    how = how or Execution()
    check_directory(plan, directory)
    EXECUTORS[how.executor].check(how)
    with claimed(directory):
        runs = finished_runs(directory)
        register(plan, directory)
        if runs:
            found = f"{counted(len(runs), 'finished run')} found in {directory}: they are kept"
            console.print(found, markup=False, highlight=False, soft_wrap=True)
        if classes := describe_classes(plan.data, plan.splits[plan.seeds[0]]):
            console.print(classes, markup=False, highlight=False, soft_wrap=True)
        with show_progress(_total_forwards(plan, runs), console, every_step=every_step) as watch:
            _run_missing(plan, directory, runs, watch, how)
        write_results(plan, directory, runs)
        return write_report(directory)


def _run_missing(plan: Plan, directory: Path, runs: Runs, watch: Watch, how: Execution) -> None:
    """Run what is missing, and add it to the runs that are finished."""
    for label, seed in runs:  # of one that was killed when its result was there
        drop_checkpoint(run_directory(directory, label, seed) / CHECKPOINT)
    tasks = make_graph(plan)
    missing = undone(tasks, runs)
    histories = Histories(directory, tasks, missing, side_by_side=how.side_by_side)
    work = describe_work(plan, directory.absolute(), histories.begun)
    worker = Worker(plan, work, watch, side_by_side=False)
    with closing(EXECUTORS[how.executor].run(worker, missing, how)) as finished:
        for task, result in finished:
            histories.done(task)
            if result is not None:
                runs[task.name, task.seed] = result
                write_results(plan, directory, runs)


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


def describe_plan(plan: Plan, guess: Estimate, *, kept: int = 0, jobs: int = 1) -> str:
    """Return arms, budgets, expected hours and disk, for people.

    Args:
        plan: of the comparison.
        guess: what it takes.
        kept: how many of its runs are finished.
        jobs: how many are done at once.
    """
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
    seconds = guess.hours * 3600
    shared = f" of one job, {duration(seconds / jobs)} or more of {jobs} jobs" if jobs > 1 else ""
    say(f"in all: {duration(seconds)}{shared}, {guess.bytes / 1e6:.1f} MB on disk at most")
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
