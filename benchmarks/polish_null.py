"""What polish confirms where there is nothing to gain, and where there is.

    python benchmarks/polish_null.py --out results/polish-null --first 2000

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

Written down after these, where the planted gain of the worst class was confirmed in 36 of 200:

- oracle: the bias that is best for the population, known before and fitted on nothing, has the
  same test on the same data sets. No procedure that has to find it can be expected to be confirmed
  more often. Then with more examples of each class, for the oracle and for the procedure.
- out of fold (three folds): the classifier is trained, linear softmax on the outputs above as its
  inputs and ten more of noise. Training sees each example with inputs 0 and 1 swapped as well (and
  classes 0 and 1), so that every network parts this pair evenly. Null, n = 600: no bias helps.
  Confirmed: at most 16 of 200, which one of 5% passes as rarely as it does 28 of 400. Planted: one
  class of three is weighted in training so that it costs five points of accuracy (n = 1,000), or
  fifteen of the worst class's recall (three classes of 200; the oracle needs 600 of each for
  five). Confirmed: at least 80%.

On data sets 1000 to 1149 two things were chosen: each bias has a unit of its own, and what is taken
off as optimism leaves the interval's other end where it is (which was also read on the data sets of
the first run). All is run once on data sets that nothing had seen, from 2000 on:
results/polish-null, which holds what has run so far; results/polish-null-first is the first run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import evostep
from evostep.polishing.bootstrap import interval, resample
from evostep.polishing.objective import parse_objective
from evostep.polishing.problem import Problem, make_problem
from evostep.polishing.result import IMPROVED, NO_GAIN, Polished

ACCURACY, WORST = METRICS = ("accuracy", "worst-class-recall")
SIGNAL = 1.5  # of the right class among 2, 3 and 4, in standard deviations of the noise
APART = 8.0  # between the pair of classes 0, 1 and the others
OTHERS = 50_000  # drawn anew, where the true gain is measured
NOISE = 10  # inputs of the classifiers that say nothing


class Arm(NamedTuple):
    """Data sets of one kind.

    Attributes:
        kind: ``"null"``, ``"planted"``, ``"oracle"``, or one of the first two out of fold.
        metric: one of `METRICS`.
        n: examples of five classes; where the pair is left out, three fifths of them.
        sets: how many data sets.
    """

    kind: str
    metric: str
    n: int
    sets: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.metric}" + (f", n = {self.n}" if self.n != 1_000 else "")

    @property
    def without_pair(self) -> bool:
        """Whether classes 0 and 1 are left out, whose recall of a half no bias can help."""
        return "null" not in self.kind and self.metric == WORST

    @property
    def planted(self) -> float:
        """The bias of class 2."""
        if "null" in self.kind:
            return 0.0
        points = 0.15 if self.metric == WORST and "out of fold" in self.kind else 0.05
        return planted_bias(self.metric, points, without_pair=self.without_pair)


ARMS = (
    *(Arm("null", metric, 1_000, 400) for metric in METRICS),
    *(Arm("planted", metric, 1_000, 200) for metric in METRICS),
    *(Arm("oracle", metric, 1_000, 200) for metric in METRICS),
    *(Arm("oracle", WORST, n, 200) for n in (2_000, 3_000, 4_000, 6_000)),
    *(Arm("planted", WORST, n, 50) for n in (2_000, 4_000, 6_000)),
    *(Arm("out of fold, null", metric, 600, 200) for metric in METRICS),
    *(Arm("out of fold, planted", metric, 1_000, 100) for metric in METRICS),
)


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


def drop_pair(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is left of outputs and targets without classes 0 and 1."""
    keep = targets >= 2
    return outputs[keep][:, 2:], targets[keep] - 2


@cache
def planted_bias(metric: str, points: float, *, without_pair: bool) -> float:
    """Return the bias of class 2 that costs so much of the metric."""
    low, high = 0.0, 6.0

    def value(bias: float) -> float:
        drawn = draw(200_000, seed=2**40, planted=bias)
        problem = make_problem(*(drop_pair(*drawn) if without_pair else drawn))
        return value_of(problem, metric, torch.zeros(problem.biases))

    best = value(0.0)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if best - value(middle) < points else (low, middle)
    return (low + high) / 2


def value_of(problem: Problem, metric: str, bias: Tensor) -> float:
    """Return the metric of a decision."""
    return float(parse_objective(metric).value(problem.counts(problem.decide(bias)), several=False))


def one(job: tuple[Arm, int]) -> dict[str, Any]:
    """Run one data set; return what was said, and what the decision gains on others."""
    torch.set_num_threads(1)
    arm, seed = job
    if "out of fold" in arm.kind:
        result, others = trained(arm, seed)
        bias, said = result.proposed, told(result)
    else:
        drawn, more = draw(arm.n, seed, arm.planted), draw(OTHERS, 2**32 + seed, arm.planted)
        if arm.without_pair:
            drawn, more = drop_pair(*drawn), drop_pair(*more)
        others = make_problem(*more)
        if arm.kind == "oracle":
            bias = torch.zeros(others.biases)
            bias[-3] = -arm.planted
            said = judged_alone(make_problem(*drawn), arm.metric, bias, seed)
        else:
            result = evostep.polish(None, drawn, arm.metric, seed=seed)
            bias, said = result.proposed, told(result)
    before, after = (value_of(others, arm.metric, b) for b in (torch.zeros_like(bias), bias))
    named = {"kind": arm.kind, "metric": arm.metric, "n": arm.n, "seed": seed}
    return {**named, **said, "true_gain": after - before}


def told(result: Polished) -> dict[str, Any]:
    """Return what is kept of a result."""
    contrasts = ("gain", "gain_over_start", "gain_of_start")
    kept = {name: vars(getattr(result, name)) for name in contrasts}
    return {"verdict": result.verdict, **kept, "optimism": result.optimism}


def judged_alone(problem: Problem, metric: str, bias: Tensor, seed: int) -> dict[str, Any]:
    """Return the test of one bias that nothing was fitted for."""
    objective = parse_objective(metric)
    decisions = torch.stack([problem.decide(b) for b in (torch.zeros_like(bias), bias)])
    values = objective.value(problem.counts(decisions), several=False)
    drawn = resample(
        problem, decisions, lambda counts: objective.value(counts, several=False), seed=seed
    )
    gain = interval(float(values[1] - values[0]), drawn[:, 1] - drawn[:, 0])
    verdict = IMPROVED if gain.confirmed else NO_GAIN
    return {"verdict": verdict, "gain": vars(gain), "gain_over_start": vars(gain)}


def trained(arm: Arm, seed: int) -> tuple[Polished, Problem]:
    """Polish a classifier out of fold; return the result, and its outputs for other examples."""

    def examples(n: int, seed: int) -> tuple[Tensor, Tensor]:
        drawn = draw(n, seed)
        inputs, targets = drop_pair(*drawn) if arm.without_pair else drawn
        noise = torch.Generator().manual_seed(2**34 + seed)
        return torch.cat([inputs, torch.randn(len(inputs), NOISE, generator=noise)], 1), targets

    classes = 3 if arm.without_pair else 5
    counts = torch.ones(classes)
    counts[-3] = math.exp(SIGNAL * arm.planted)  # moves what it learns by so much

    def make_model() -> nn.Module:
        model = nn.Linear(classes + NOISE, classes)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    def fit(model: nn.Module, part: Dataset[Any]) -> None:
        inputs, targets = next(iter(DataLoader(part, arm.n)))
        if not arm.without_pair:  # mirrored
            other = inputs.clone()
            other[:, :2] = inputs[:, [1, 0]]
            inputs = torch.cat([inputs, other])
            targets = torch.cat([targets, torch.where(targets < 2, 1 - targets, targets)])
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=20)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(model(inputs), targets, counts)
            value.backward()
            return value

        optimizer.step(loss)

    data = TensorDataset(*examples(arm.n, seed))
    model, result = evostep.out_of_fold(make_model, fit, data, arm.metric, seed=seed)
    result.revert()
    inputs, targets = examples(OTHERS, 2**32 + seed)
    return result, make_problem(model(inputs).detach(), targets)


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of an arm."""
    return {
        "n": len(runs),
        "confirmed": sum(run["verdict"] != NO_GAIN for run in runs),
        "evolution confirmed over the start": sum(
            run["verdict"] == IMPROVED and run["gain_over_start"]["low"] > 0 for run in runs
        ),
        "interval contains the true gain": sum(
            run["gain"]["low"] <= run["true_gain"] <= run["gain"]["high"] for run in runs
        ),
        "mean gain": sum(run["gain"]["value"] for run in runs) / len(runs),
        "mean true gain": sum(run["true_gain"] for run in runs) / len(runs),
    }


def main() -> None:
    """Run what is missing, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="*", help="arms whose names match")
    parser.add_argument("--first", type=int, default=0, help="first data set, by its seed")
    parser.add_argument("--most", type=int, help="data sets of an arm")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "runs.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    seen = {(run["kind"], run["metric"], run.get("n", 1_000), run["seed"]) for run in done}
    jobs = [
        (arm, args.first + i)
        for arm in ARMS
        if fnmatch(str(arm), args.only)
        for i in range(min(arm.sets, args.most or arm.sets))
    ]
    missing = [(arm, seed) for arm, seed in jobs if (*arm[:3], seed) not in seen]
    with ProcessPoolExecutor(args.workers) as pool, log.open("a") as file:
        for run in pool.map(one, missing):
            file.write(json.dumps(run) + "\n")
            file.flush()
            done.append(run)
    summary = {
        str(arm): summarise(runs)
        for arm in ARMS
        if (
            runs := [
                run for run in done if (run["kind"], run["metric"], run.get("n", 1_000)) == arm[:3]
            ]
        )
    }
    about = {
        "command": "python benchmarks/polish_null.py --out results/polish-null "
        f"--first {args.first}",
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    (args.out / "results.json").write_text(json.dumps({**about, **summary}, indent=1) + "\n")
    for name, row in summary.items():
        print(name, row)


if __name__ == "__main__":
    main()
