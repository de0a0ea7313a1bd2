"""Polishing beside other searches of the same biases, on the same outputs, judged on a test set.

    python benchmarks/polish_arena.py fashion --cache outputs --out results/polish-fashion
    python benchmarks/polish_arena.py tables --cache outputs --out results/polish-tables

What is compared, on what, and what counts as better is registered in the README.md of each result's
folder, written before the first run. Runs are written down one by one, and the same command goes
on where it stopped; `--summarise` only writes results.json and table.md again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polish_controls as controls
import torch
from polish_outputs import FOLDS, Outputs, digest, outputs, units
from polish_summary import summarise
from torch import Tensor

from evostep.polishing.objective import Objective
from evostep.polishing.polish import polish_problems
from evostep.polishing.problem import Problem, make_problem
from evostep.polishing.settings import Settings
from evostep.polishing.starts import fit_starts

METRICS = ("worst-class-recall", "g-mean", "cost", "quadratic-kappa", "macro-f1")  # primary first
SEEDS = {"fashion": range(100, 120), "tables": range(100, 110)}
SEARCHES = {
    "evolution": controls.evolution,
    "coordinate search": controls.coordinate_search,
    "Adam, soft form": controls.adam_on_soft_form,
}


def costs_of(counts: Tensor) -> Tensor:
    """Return the table of costs, (C, C), rows are true classes.

    The class in place r by its examples, the most frequent in place 0, costs 1 + r where it is
    taken for a rarer one, twice as much where it is taken for a more frequent one.

    Example:
        >>> costs_of(torch.tensor([50, 100])).tolist()
        [[0.0, 4.0], [1.0, 0.0]]
    """
    place = torch.empty_like(counts)
    place[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts))
    table = (1.0 + place.double())[:, None] * (1.0 + (place < place[:, None]).double())
    return table.fill_diagonal_(0.0)


class Judge:
    """Measures decisions on the test set, whose classes are weighted to the prior of training."""

    def __init__(self, found: Outputs, objective: Objective) -> None:
        share = found.targets.bincount() / len(found.targets)
        weight = share / (found.test_targets.bincount() / len(found.test_targets))
        self._problem = make_problem(
            found.test, found.test_targets, weights=weight.double()[found.test_targets]
        )
        self._objective = objective

    def value(self, bias: Tensor) -> float:
        """Return the metric under biases (C,)."""
        return self.of(self._problem.decide(bias))

    def of(self, decisions: Tensor) -> float:
        """Return the metric of decisions (m,)."""
        return float(self._objective.value(self._problem.counts(decisions), several=False))

    def by_expected_cost(self, costs: Tensor) -> float:
        """Return the metric of what costs least by the network's own probabilities."""
        expected = self._problem.outputs.double().softmax(1) @ costs
        return self.of(expected.argmin(1))


def compare(found: Outputs, metric: str, seed: int) -> dict[str, Any]:
    """Return what every arm reaches on the test set, and what polishing said."""
    costs = costs_of(found.targets.bincount())
    settings = Settings(metric, folds=FOLDS, costs=costs if metric == "cost" else None, seed=seed)
    objective = settings.objective
    problems: dict[int | None, Problem] = {
        fold: settings.problem(of_fold, found.targets) for fold, of_fold in found.nested.items()
    }
    problem = problems[None]
    judge = Judge(found, objective)

    everything = torch.ones(1, len(problem), dtype=torch.float64)
    starts = fit_starts(problem, objective, everything)[:, 0]
    names = ("checkpoint", "logit adjustment", "tuned adjustment")
    arms = {name: judge.value(bias) for name, bias in zip(names, starts, strict=True)}

    polished = polish_problems(problem, settings, found.parts, problems.__getitem__)
    arms["polish, by its verdict"] = judge.value(polished.decision.bias)
    for name, searcher in SEARCHES.items():
        fitted = controls.fit(problem, objective, found.parts, searcher, seed)
        chosen = controls.select(problem, objective, fitted, careful=True)
        if searcher is controls.evolution:  # what polishing chose: see that it did
            assert torch.equal(chosen, polished.proposed), metric
        arms["polish" if searcher is controls.evolution else name] = judge.value(chosen)
        chosen = controls.select(problem, objective, fitted, careful=False)
        arms[f"{name}, no margin"] = judge.value(chosen)
    if metric == "cost":
        arms["least expected cost"] = judge.by_expected_cost(costs)
    return {
        "arms": arms,
        "verdict": polished.verdict,
        "chosen": polished.chosen,
        "gain": vars(polished.gain),
        "gain_over_start": vars(polished.gain_over_start),
        "start": polished.start,
        "optimism": polished.optimism,
    }


def run(arena: str, unit: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return everything about a unit and a seed."""
    found = outputs(arena, unit, seed, args.cache, args.data_dir)
    return {
        "unit": unit,
        "seed": seed,
        "train": found.targets.bincount().tolist(),
        "test": found.test_targets.bincount().tolist(),
        "digest": digest(found),
        "metrics": {metric: compare(found, metric, seed) for metric in METRICS},
    }


def environment(command: str) -> dict[str, Any]:
    """Return what the numbers were made by."""
    folder = Path(__file__).parent
    git = ("git", "-C", str(folder))
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return {
        "command": command,
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("arena", choices=tuple(SEEDS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of the outputs, outside the project")
    parser.add_argument("--data-dir", type=Path, help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", help="others than the registered ones")
    parser.add_argument("--units", nargs="+", help="some of the networks, or of the data sets")
    parser.add_argument("--summarise", action="store_true", help="run nothing")
    args = parser.parse_args(arguments)
    if not args.summarise and args.cache is None:
        parser.error("--cache FOLDER is needed to run")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    log, about = args.out / "runs.jsonl", args.out / "environment.json"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not args.summarise:
        now = environment(f"python benchmarks/polish_arena.py {args.arena} --out {args.out}")
        check_same_code(about, now)
        seen = {(one["unit"], one["seed"]) for one in done}
        for seed in args.seeds or SEEDS[args.arena]:
            for unit in args.units or units(args.arena):
                if (unit, seed) not in seen:
                    done.append(run(args.arena, unit, seed, args))
                    with log.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
                    print(datetime.now(UTC).isoformat("T", "seconds"), unit, seed, flush=True)
    results, table = summarise(args.arena, done)
    results = {**json.loads(about.read_text()), **results}
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "table.md").write_text(table)
    print(table)


def check_same_code(about: Path, now: Mapping[str, Any]) -> None:
    """Keep what the first run was made by; refuse to go on with other code."""
    if not about.exists():
        about.write_text(json.dumps(now, indent=1) + "\n")
    first = json.loads(about.read_text())
    if first["commit"] != now["commit"]:
        raise SystemExit(
            f"runs in {about.parent} are of commit {first['commit'][:12]}, this is "
            f"{now['commit'][:12]}: check that out, or give another --out"
        )


if __name__ == "__main__":
    main()
