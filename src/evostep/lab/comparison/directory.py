"""What a directory holds of a comparison: its plan, who is in which split, and the finished runs.

``plan.json`` and ``splits.json`` are written first, ``runs/LABEL-seedN/result.json`` as runs end,
and ``results.json`` holds all of it that a reader needs. A published comparison lacks checkpoints
and weights, or is ``results.json`` alone, and can be gone on with, too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from evostep.errors import InputError, reason, warn
from evostep.lab.arms.arm import Training
from evostep.lab.arms.methods import METHODS
from evostep.lab.arms.precedence import make_arms
from evostep.lab.arms.seed_run import run_directory
from evostep.lab.comparison.environment import describe_environment, merge_environments
from evostep.lab.comparison.plan import Plan, describe_arms, describe_options
from evostep.lab.options import Options
from evostep.lab.report.contrasts import with_statistics
from evostep.lab.report.records import RESULTS, RUN
from evostep.lab.storage import check_place, is_untouched, mismatch, read_json, write_json

Runs = dict[tuple[str, int], dict[str, Any]]

_ARM = {"label": str, "method": str, "budget": (int, None), "training": dict, "strategy?": dict}
_PLAN = {"options": {str: object}, "arms": {str: _ARM}}
_SPLITS = {"summary": {str: dict}, "indices": {str: dict}}
_OF_A_RESULT = {"arm", "seed", "test", "train", "sample_forwards", "seconds"}


def check_directory(plan: Plan, directory: Path) -> None:
    """Refuse a directory that holds something else, or results of another configuration."""
    known = known_plan(directory)
    if known is None:
        if not is_untouched(directory):
            raise InputError(
                f"--out {directory} is not empty and holds no comparison: choose another"
            )
        return
    new = _plain(plan.identity())
    differs = _differs(known, new)
    budgets = {arm["budget"] for arm in (*known["arms"].values(), *new["arms"].values())}
    if not differs and len(budgets) > 1:
        was, now = _budget(known), _budget(new)
        differs = f"the common budget was {was} sample-forwards, that of these arms is {now}"
        if was is not None:
            raise InputError(
                f"{directory} holds results of another configuration ({differs}): keep it with "
                f"--budget {was}, or choose another --out"
            )
    differs = differs or _other_splits(plan, directory)
    if differs:
        raise InputError(
            f"{directory} holds results of another configuration ({differs}): choose another --out"
        )


def is_complete(options: Options, directory: Path) -> bool:
    """Return whether a published comparison has every run that the options ask for.

    Neither its data nor anything else is needed to tell.

    Raises:
        InputError: an option or file that is wrong.
    """
    if (directory / "trunks").exists() or (known := known_plan(directory)) is None:
        return False  # it was run here, so its data are at hand and can be compared
    arms = make_arms(options)
    new = {"options": describe_options(options, arms), "arms": describe_arms(arms)}
    runs = finished_runs(directory)
    whole = all((arm.label, seed) in runs for arm in arms for seed in options.seed_list)
    budgets = {arm["budget"] for arm in known["arms"].values()}
    same_budget = options.budget is None or budgets == {options.budget}
    return whole and same_budget and not _differs(known, _plain(new))


def known_plan(directory: Path) -> dict[str, Any] | None:
    """Return what the directory was made for; None where it holds no comparison.

    Where ``plan.json`` is corrupt or missing, ``results.json`` tells it.

    Raises:
        InputError: neither can be read; or the directory cannot.
    """
    check_place(directory)
    path = directory / "plan.json"
    try:
        if path.exists():
            plan: dict[str, Any] = read_json(path, _PLAN)
            return plan
        return _plan_of_results(directory)
    except OSError as error:
        raise InputError(
            f"--out {directory} cannot be read ({reason(error)}): choose another"
        ) from error
    except InputError as error:
        why, _, _ = str(error).rpartition(": ")
        if path.exists() and (plan_of_results := _plan_of_results(directory)) is not None:
            warn(f"{why}: it is made again from results.json")
            return plan_of_results
        if (directory / "runs").is_dir():
            cure = "restore it or results.json from a copy, or choose another --out"
        else:
            cure = f"no run has finished: delete the folder {directory}, or choose another --out"
        raise InputError(f"{why}: {cure}") from error


def finished_runs(directory: Path) -> Runs:
    """Read the runs that are finished, those of other seeds and arms included.

    Raises:
        InputError: a result that cannot be read, or is in the place of another.
    """
    published = _results(directory)
    before = {(run["arm"], run["seed"]): run for run in published.get("runs", [])}
    runs: Runs = dict(before) if _is_published(directory) else {}
    for path in sorted((directory / "runs").glob("*/result.json")):
        result = read_json(path, RUN, cure="delete it to run it again")
        key = result["arm"], result["seed"]
        if not result.keys() >= _OF_A_RESULT or path.parent != run_directory(directory, *key):
            raise InputError(f"{path} is not the result of this run: delete it to run it again")
        runs[key] = result
    for key, result in runs.items():  # older versions kept one environment for all runs
        environment = before.get(key, {}).get("environment") or published.get("environment")
        if "environment" not in result and environment:
            result["environment"] = environment
    return runs


def register(plan: Plan, directory: Path) -> None:
    """Write down what is compared and who is in which split, adding to what stands there."""
    known, splits = known_plan(directory), _known_splits(directory)
    if _is_published(directory):
        for (label, seed), result in finished_runs(directory).items():
            write_json(run_directory(directory, label, seed) / "result.json", result)
    new = _plain(plan.identity())
    new["arms"] = {**(known or new)["arms"], **new["arms"]}
    for seed, cut_of_seed in plan.splits.items():
        splits["summary"][str(seed)] = cut_of_seed.as_json()
        splits["indices"][str(seed)] = cut_of_seed.indices()
    write_json(directory / "plan.json", new)  # first: it is what tells that the directory is ours
    write_json(directory / "splits.json", splits)


def write_results(plan: Plan, directory: Path, runs: Runs) -> None:
    """Write ``results.json`` from the runs that are finished."""
    described = read_json(directory / "plan.json", _PLAN)
    order = {label: i for i, label in enumerate(described["arms"])}
    ordered = [runs[key] for key in sorted(runs, key=lambda key: (key[1], order.get(key[0], 0)))]
    seeds = sorted({seed for _, seed in runs} | set(plan.seeds))
    controls = {name for name, method in METHODS.items() if method.control}
    config = {
        **described["options"],
        "seeds": seeds,
        "arms": [
            {**arm, "control": arm["method"] in controls} for arm in described["arms"].values()
        ],
        "budget": max((b for b in plan.budgets.values() if b is not None), default=None),
    }
    environments = [run["environment"] for run in ordered if run.get("environment")]
    results = {
        "config": config,
        "environment": merge_environments(environments or [describe_environment(plan.device)]),
        "data": {
            "name": plan.data.name,
            "title": plan.data.title,
            "classes": list(plan.data.classes),
            **({"skipped": list(plan.data.skipped)} if plan.data.skipped else {}),
        },
        "splits": _known_splits(directory)["summary"],
        "runs": ordered,
    }
    write_json(directory / "results.json", with_statistics(results))


def _is_published(directory: Path) -> bool:
    """Return whether there are results, without what tells how they came to be."""
    own = directory / "plan.json"
    return not own.exists() and _plan_of_results(directory) is not None


def _results(directory: Path) -> dict[str, Any]:
    """Return ``results.json``; nothing where it is missing or corrupt, for it is made again."""
    try:
        results: dict[str, Any] = read_json(directory / "results.json", RESULTS)
    except InputError:
        return {}
    return results


def _plan_of_results(directory: Path) -> dict[str, Any] | None:
    config = _results(directory).get("config")
    if not isinstance(config, dict) or mismatch(config.get("arms"), [_ARM]):
        return None
    options = {name: v for name, v in config.items() if name not in ("seeds", "arms", "budget")}
    arms = [{name: v for name, v in arm.items() if name != "control"} for arm in config["arms"]]
    return {"options": options, "arms": {arm["label"]: arm for arm in arms}}


def _known_splits(directory: Path) -> dict[str, Any]:
    path = directory / "splits.json"
    if path.exists():
        splits: dict[str, Any] = read_json(path, _SPLITS, cure="delete it: it is made again")
        return splits
    return {"summary": dict(_results(directory).get("splits", {})), "indices": {}}


def _other_splits(plan: Plan, directory: Path) -> str:
    """Return which seed's examples are not those that it had; empty where all are."""
    known = _known_splits(directory)["summary"]
    for seed, splits in plan.splits.items():
        if known.get(str(seed), splits.as_json()) != splits.as_json():
            return f"the data or its splits of seed {seed} were others"
    return ""


def _differs(known: dict[str, Any], new: dict[str, Any]) -> str:
    """Return which option or setting of an arm is another, budgets aside; empty where none is."""
    defaults = _plain(describe_options(Options(), []))  # an option is younger than the directory
    differs = _difference({**defaults, **known["options"]}, new["options"], "--")
    for label in known["arms"].keys() & new["arms"].keys():
        was, now = ({**arms["arms"][label], "budget": None} for arms in (known, new))
        differs = differs or _difference(_current_names(was), now, f"arm {label}: ")
    return differs


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
    """Return an arm as it is described today.

    A mutation's population was called children, and some of how arms train is younger.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(Training) if f.name != "span"}
    younger = {name: v for name, v in defaults.items() if v is not dataclasses.MISSING}
    arm = {**arm, "training": {**younger, **arm["training"]}}
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
