"""What scoring decisions costs: beside a loop in NumPy over the same outputs, and beside tuners.

    python benchmarks/polish_speed.py --threads 2

- 10,000 examples x 100 classes, 1,000 decisions, macro-F1: `evostep` against argmax and bincount in
  NumPy, decision by decision.
- two classes, 10,000 examples, balanced accuracy: polishing as a whole (cross-fitted, with its
  test) against `TunedThresholdClassifierCV` (a threshold by cross-validation, no test).
- ten classes, 5,000 examples, macro-F1: one search of 1,000 decisions against
  `scipy.optimize.differential_evolution` with as many.

Sides alternate; ratios of medians count, not seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import evostep
from evostep.polishing.objective import parse_objective
from evostep.polishing.problem import make_problem
from evostep.polishing.search import Scorer, Search, search


def numpy_macro_f1(outputs: Any, targets: Any, bias: Any) -> float:
    """Return the macro-F1 of one decision, as one would write it by hand."""
    classes = outputs.shape[1]
    decided = (outputs + bias).argmax(1)
    counts = np.bincount(targets * classes + decided, minlength=classes**2)
    counts = counts.reshape(classes, classes)
    hits, either = counts.diagonal(), counts.sum(0) + counts.sum(1)
    return float((2 * hits[either > 0] / either[either > 0]).mean())


def drawn(n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs and targets of a network that is right on about half of the examples."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % classes
    outputs = torch.randn(n, classes, generator=generator)
    return outputs + 2 * torch.nn.functional.one_hot(targets, classes), targets


def compare(sides: dict[str, Callable[[], Any]], repeats: int) -> None:
    """Time the sides in turn, and print seconds and ratios to the second side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    other = list(middle.values())[1]
    for name, value in middle.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(f"  {name:45s} {value:7.2f} s ({low:.2f} to {high:.2f})  x {value / other:.2f}")


def main() -> None:
    """Run the three comparisons."""
    from scipy.optimize import differential_evolution
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import TunedThresholdClassifierCV

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    objective = parse_objective("macro-f1")

    outputs, targets = drawn(10_000, 100)
    problem = make_problem(outputs, targets)
    biases = torch.randn(1_000, 100, generator=torch.Generator().manual_seed(1)).double() / 2
    arrays = outputs.numpy(), targets.numpy(), biases.float().numpy()
    scorer = Scorer(problem, objective, torch.ones(len(problem)).double())

    def by_hand() -> list[float]:
        return [numpy_macro_f1(arrays[0], arrays[1], bias) for bias in arrays[2]]

    np.testing.assert_allclose(scorer.fitness(biases).numpy(), by_hand())
    print("macro-F1 of 1,000 decisions about 10,000 examples of 100 classes")
    compare({"evostep": lambda: scorer.fitness(biases), "NumPy loop": by_hand}, args.repeats)

    outputs, targets = drawn(10_000, 2)
    X, y = outputs.numpy(), (torch.rand(10_000) < 0.9).long().numpy() * targets.numpy()
    tuner = TunedThresholdClassifierCV(LogisticRegression(), scoring="balanced_accuracy")
    print("a threshold for two classes, 10,000 examples, balanced accuracy")
    scores = LogisticRegression().fit(X, y).decision_function(X)
    compare(
        {
            "evostep.polish, cross-fitted, with its test": lambda: evostep.polish(
                None, (scores, y), "balanced-accuracy"
            ),
            "TunedThresholdClassifierCV, with its fits": lambda: tuner.fit(X, y),
        },
        args.repeats,
    )

    outputs, targets = drawn(5_000, 10)
    problem, arrays = make_problem(outputs, targets), (outputs.numpy(), targets.numpy(), None)
    rows, start = torch.ones(1, 5_000).double(), torch.zeros(1, 10).double()
    print("macro-F1 of 1,000 decisions about 5,000 examples of 10 classes, in a search")
    compare(
        {
            "evostep's search": lambda: search(
                problem, objective, rows, start, (0.001,), Search(20, 50)
            ),
            "scipy.optimize.differential_evolution": lambda: differential_evolution(
                lambda bias: -numpy_macro_f1(arrays[0], arrays[1], bias),
                [(-2.0, 2.0)] * 10,
                maxiter=9,
                popsize=10,
                polish=False,
                rng=0,
            ),
        },
        args.repeats,
    )


if __name__ == "__main__":
    main()
