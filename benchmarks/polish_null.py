"""What polish confirms where there is nothing to gain, and where there is.

    python benchmarks/polish_null.py --out results/polish-null

Written down before the first run. Drawn outputs (n = 1,000, five classes of 200), the metrics
accuracy and worst-class recall, the defaults of `evostep.polish`, data sets 0 to 399 for the null
and 0 to 199 for the planted gain:

- null: outputs of classes 0 and 1 say nothing about which of both is true, so that decisions
  between them move at no gain; classes 2 to 4 are alike, so that no bias helps. Confirmed
  ("improved" or "improved by the start"): at most 28 of 400, for each metric.
- planted: one class of three has a bias that costs five points of the metric. Confirmed: at least
  80%.
- coverage, on the planted data sets: the interval of the gain contains what the decision, fitted
  on all examples, gains on 50,000 others: at least 90%.
"""

from __future__ import annotations

import argparse
import json
import platform
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import evostep
from evostep.polishing.objective import parse_objective
from evostep.polishing.problem import make_problem

METRICS = ("accuracy", "worst-class-recall")
SIGNAL = 1.5  # of the right class among 2, 3 and 4, in standard deviations of the noise
APART = 8.0  # between the pair of classes 0, 1 and the others


def draw(n: int, seed: int, planted: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return outputs (n, 5) and targets (n,); `planted` is the bias of class 2."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 5
    outputs = torch.randn(n, 5, generator=generator)
    pair = targets < 2
    outputs[pair, :2] += APART
    outputs[~pair, 2:] += APART
    right = torch.nn.functional.one_hot(targets, 5).bool() & ~pair[:, None]
    outputs[right] += SIGNAL
    outputs[:, 2] += planted
    return outputs, targets


def planted_bias(metric: str, points: float = 0.05) -> float:
    """Return the bias of class 2 that costs so much of the metric."""
    low, high = 0.0, 6.0
    objective = parse_objective(metric)

    def value(bias: float) -> float:
        outputs, targets = draw(200_000, seed=2**40, planted=bias)
        problem = make_problem(outputs, targets)
        if metric == "worst-class-recall":  # of the three classes that a bias can help
            keep = targets >= 2
            problem = make_problem(outputs[keep][:, 2:], targets[keep] - 2)
        counts = problem.counts(problem.decide(torch.zeros(problem.biases)))
        return float(objective.value(counts, several=False))

    best = value(0.0)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if best - value(middle) < points else (low, middle)
    return (low + high) / 2


def one(job: tuple[str, str, int, float]) -> dict[str, Any]:
    """Polish one drawn data set; return what was said, and what the decision gains on others."""
    torch.set_num_threads(1)
    kind, metric, seed, planted = job
    outputs, targets = draw(1_000, seed, planted)
    fresh, truth = draw(50_000, 2**32 + seed, planted)
    if kind == "planted" and metric == "worst-class-recall":
        # without the pair, whose recall of a half no bias can help
        outputs, fresh = outputs[targets >= 2][:, 2:], fresh[truth >= 2][:, 2:]
        targets, truth = targets[targets >= 2] - 2, truth[truth >= 2] - 2
    result = evostep.polish(None, (outputs, targets), metric, seed=seed)
    problem, objective = make_problem(fresh, truth), parse_objective(metric)
    before, after = (
        objective.value(problem.counts(problem.decide(bias)), several=False)
        for bias in (torch.zeros(problem.biases), result.proposed)
    )
    return {
        "kind": kind,
        "metric": metric,
        "seed": seed,
        "verdict": result.verdict,
        "gain": vars(result.gain),
        "gain_over_start": vars(result.gain_over_start),
        "gain_of_start": vars(result.gain_of_start),
        "optimism": result.optimism,
        "true_gain": float(after - before),
    }


def main() -> None:
    """Run what is missing, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--null", type=int, default=400)
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "runs.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    seen = {(run["kind"], run["metric"], run["seed"]) for run in done}
    jobs = []
    for metric in METRICS:
        bias = planted_bias(metric)
        jobs += [("null", metric, seed, 0.0) for seed in range(args.null)]
        jobs += [("planted", metric, seed, bias) for seed in range(args.planted)]
    missing = [job for job in jobs if job[:3] not in seen]
    with ProcessPoolExecutor(args.workers) as pool, log.open("a") as file:
        for run in pool.map(one, missing):
            file.write(json.dumps(run) + "\n")
            file.flush()
            done.append(run)
    summary = {
        f"{kind}, {metric}": {
            "n": len(runs),
            "confirmed": sum(run["verdict"] != "no confirmed gain" for run in runs),
            "evolution confirmed over the start": sum(
                run["verdict"] == "improved" and run["gain_over_start"]["low"] > 0 for run in runs
            ),
            "interval contains the true gain": sum(
                run["gain"]["low"] <= run["true_gain"] <= run["gain"]["high"] for run in runs
            ),
            "mean gain": sum(run["gain"]["value"] for run in runs) / len(runs),
            "mean true gain": sum(run["true_gain"] for run in runs) / len(runs),
        }
        for kind in ("null", "planted")
        for metric in METRICS
        if (runs := [run for run in done if (run["kind"], run["metric"]) == (kind, metric)])
    }
    about = {
        "command": "python benchmarks/polish_null.py --out results/polish-null",
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    (args.out / "results.json").write_text(json.dumps({**about, **summary}, indent=1) + "\n")
    for name, row in summary.items():
        print(name, row)


if __name__ == "__main__":
    main()
