"""A comparison: seeds x arms, arms of a seed branching from one trunk, results as they come."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from evostep.errors import InputError, counted, reason
from evostep.lab.arms.budget import arm_cost, trunk_cost
from evostep.lab.arms.methods import METHODS
from evostep.lab.arms.seed_run import SeedRun, run_directory
from evostep.lab.comparison.environment import describe_environment
from evostep.lab.comparison.estimate import estimate
from evostep.lab.comparison.plan import Plan
from evostep.lab.comparison.progress import show_progress
from evostep.lab.comparison.run import run_arm, run_trunk
from evostep.lab.data.parts import cut
from evostep.lab.report.contrasts import with_statistics
from evostep.lab.report.page import ReportPaths, write_report
from evostep.lab.report.wording import duration, forwards
from evostep.lab.storage import History, check_room, read_json, write_json

_OF_A_RESULT = {"arm", "seed", "test", "train", "sample_forwards", "seconds"}


def compare(plan: Plan, directory: Path, console: Console) -> ReportPaths:
    """Run what is missing of a comparison and write table, figures and page.

    Finished runs are never repeated; a run that was cut off goes on from its last checkpoint.

    Raises:
        InputError: the directory holds results of another configuration, or a corrupt file.
    """
    check_directory(plan, directory)
    runs = finished_runs(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {directory} cannot be made ({reason(error)}): choose another"
        ) from error
    _register(plan, directory)
    if runs:
        found = f"{counted(len(runs), 'finished run')} found in {directory}: they are kept"
        console.print(found, markup=False, highlight=False, soft_wrap=True)
    history = History(directory / "history.jsonl")
    with show_progress(_total_forwards(plan, runs), console) as watch:
        for seed in plan.seeds:
            missing = [arm for arm in plan.arms if (arm.label, seed) not in runs]
            if not missing:
                continue
            parts = cut(plan.data, plan.splits[seed], plan.device)
            seed_run = SeedRun(
                plan.options, seed, parts, plan.sizes, plan.device, directory, history, watch
            )
            trunks = {
                key: run_trunk(seed_run, training, labels)
                for key, (training, labels) in plan.trunks.items()
                if any(arm.training.key == key for arm in missing)
            }
            for arm in missing:
                trunk = trunks[arm.training.key]
                result = run_arm(seed_run, arm, trunk, plan.budgets[arm.label])
                folder = run_directory(directory, arm.label, seed)
                write_json(folder / "result.json", result)
                (folder / "checkpoint.pt").unlink(missing_ok=True)
                runs[arm.label, seed] = result
                write_results(plan, directory, runs)
    write_results(plan, directory, runs)
    return write_report(directory)


def check_directory(plan: Plan, directory: Path) -> None:
    """Refuse a directory that holds something else, or results of another configuration."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"--out {directory} is a file: choose a directory")
    registered = directory / "plan.json"
    if not registered.exists():
        if directory.exists() and any(directory.iterdir()):
            raise InputError(
                f"--out {directory} is not empty and holds no comparison: choose another"
            )
        return
    known, new = read_json(registered), _plain(plan.identity())
    try:
        differs = _difference(known["options"], new["options"], "--")
        for label in known["arms"].keys() & new["arms"].keys():
            was, now = ({**arms["arms"][label], "budget": None} for arms in (known, new))
            differs = differs or _difference(_current_names(was), now, f"arm {label}: ")
        budgets = {arm["budget"] for arm in (*known["arms"].values(), *new["arms"].values())}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{registered} is not a plan of evostep: choose another --out") from error
    if not differs and len(budgets) > 1:
        differs = (
            f"the common budget was {_budget(known)} sample-forwards, that of these arms is "
            f"{_budget(new)}"
        )
    differs = differs or _other_splits(plan, directory)
    if differs:
        raise InputError(
            f"{directory} holds results of another configuration ({differs}): choose another --out"
        )


def finished_runs(directory: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Read the runs that are finished, those of other seeds and arms included."""
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted((directory / "runs").glob("*/result.json")):
        result = read_json(path)
        whole = isinstance(result, dict) and result.keys() >= _OF_A_RESULT
        if not whole or path.parent != run_directory(directory, result["arm"], result["seed"]):
            raise InputError(f"{path} is not the result of this run: delete it to run it again")
        runs[result["arm"], result["seed"]] = result
    return runs


def write_results(plan: Plan, directory: Path, runs: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Write ``results.json`` from the runs that are finished."""
    described = read_json(directory / "plan.json")
    order = {label: i for i, label in enumerate(described["arms"])}
    ordered = [runs[key] for key in sorted(runs, key=lambda key: (key[1], order.get(key[0], 0)))]
    seeds = sorted({seed for _, seed in runs} | set(plan.seeds))
    config = {
        **described["options"],
        "seeds": seeds,
        "arms": [
            {**arm, "control": METHODS[arm["method"]].control} for arm in described["arms"].values()
        ],
        "budget": max((b for b in plan.budgets.values() if b is not None), default=None),
    }
    splits = read_json(directory / "splits.json")
    results = {
        "config": config,
        "environment": describe_environment(plan.device),
        "data": {
            "name": plan.data.name,
            "title": plan.data.title,
            "classes": list(plan.data.classes),
        },
        "splits": splits["summary"],
        "runs": ordered,
    }
    write_json(directory / "results.json", with_statistics(results))


def describe_plan(plan: Plan, directory: Path, console: Console) -> None:
    """Print arms, budgets, expected hours and disk; write nothing."""
    guess = estimate(plan)
    sizes, options = plan.sizes, plan.options

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{plan.data.title}: {sizes.train} train, {sizes.fitness} fitness, {sizes.accept} accept, "
        f"{sizes.test} test; model {options.model}; device {plan.device}"
    )
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
        more = f" (its epochs: {own:,})" if own < budget else ""
        say(f"  {arm.label}: {forwards(budget)}{more}, {duration(hours * 3600)} after the trunk")
    say(f"{counted(len(plan.trunks), 'trunk')}: {duration(guess.trunk_hours * 3600)}, each seed")
    say(f"in all: {duration(guess.hours * 3600)}, {guess.bytes / 1e6:.1f} MB on disk at most")
    check_room(directory, guess.bytes)


def _register(plan: Plan, directory: Path) -> None:
    """Write down what is compared and who is in which split, adding to what stands there."""
    new = _plain(plan.identity())
    path = directory / "plan.json"
    if path.exists():
        new["arms"] = {**read_json(path)["arms"], **new["arms"]}
    splits = _known_splits(directory)
    for seed, cut_of_seed in plan.splits.items():
        splits["summary"][str(seed)] = cut_of_seed.as_json()
        splits["indices"][str(seed)] = cut_of_seed.indices()
    write_json(path, new)  # first, for it is what tells that the directory is ours
    write_json(directory / "splits.json", splits)


def _known_splits(directory: Path) -> dict[str, Any]:
    path = directory / "splits.json"
    if not path.exists():
        return {"summary": {}, "indices": {}}
    splits = read_json(path)
    if isinstance(splits, dict) and splits.keys() >= {"summary", "indices"}:
        return splits
    raise InputError(f"{path} does not hold splits: delete it, or choose another --out")


def _other_splits(plan: Plan, directory: Path) -> str:
    """Return which seed's examples are not those that it had; empty where all are."""
    known = _known_splits(directory)["summary"]
    for seed, splits in plan.splits.items():
        if known.get(str(seed), splits.as_json()) != splits.as_json():
            return f"the data or its splits of seed {seed} were others"
    return ""


def _total_forwards(plan: Plan, runs: dict[tuple[str, int], dict[str, Any]]) -> int:
    """Return what is to be spent: trunks once for each seed, and each arm from its trunk on."""
    total = 0
    for seed in plan.seeds:
        missing = [arm for arm in plan.arms if (arm.label, seed) not in runs]
        shared = {arm.training.key: trunk_cost(arm, plan.sizes) for arm in missing}
        total += sum(shared.values())
        for arm in missing:
            whole = plan.budgets[arm.label] or arm_cost(arm, plan.sizes)
            total += max(0, whole - shared[arm.training.key])
    return total


def _plain(value: Any) -> Any:
    """Return what JSON would give back, for comparison."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _current_names(arm: dict[str, Any]) -> dict[str, Any]:
    """Return an arm as it is described today: a mutation's population was called children."""
    strategy = arm.get("strategy")
    if not strategy:
        return arm
    renamed = {"population" if key == "children" else key: strategy[key] for key in strategy}
    return {**arm, "strategy": renamed}


def _difference(known: dict[str, Any], new: dict[str, Any], prefix: str) -> str:
    """Name the first setting that differs, as it was and as it is; empty where none does."""
    for name in sorted(known.keys() | new.keys()):
        old_value, new_value = known.get(name), new.get(name)
        if old_value != new_value:
            if isinstance(old_value, dict) and isinstance(new_value, dict):
                return _difference(old_value, new_value, f"{prefix}{name}.")
            shown = name.replace("_", "-") if prefix == "--" else name
            return f"{prefix}{shown} was {old_value}, now {new_value}"
    return ""


def _budget(described: dict[str, Any]) -> Any:
    """Return the common budget; the arms of a plan all have the same."""
    return next(iter(described["arms"].values()))["budget"]
