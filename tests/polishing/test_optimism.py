"""The null in small: nothing is claimed where there is nothing to gain.

`benchmarks/polish_null.py` counts on hundreds of data sets of the size that people have.
"""

import pytest
import torch
from torch import Tensor

import evostep

SETS = 8
QUICK = {"folds": 3, "budget": 7 * 3 * 8 * 8, "population": 8, "draws": 400}


def nothing_to_gain(seed: int, metric: str) -> tuple[Tensor, Tensor]:
    """Classes 0 and 1, whose outputs are chance, and three that are alike.

    For the worst class these three alone: a recall of a half would hide what is claimed of theirs.
    """
    n = 150 if metric == "accuracy" else 300
    targets = torch.arange(n) % 5
    outputs = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    pair = targets < 2
    outputs[pair, :2] += 8
    outputs[~pair, 2:] += 8 + 1.5 * torch.nn.functional.one_hot(targets[~pair] - 2, 3)
    return (outputs, targets) if metric == "accuracy" else (outputs[~pair, 2:], targets[~pair] - 2)


@pytest.mark.parametrize("metric", ["accuracy", "worst-class-recall"])
def test_where_nothing_is_to_be_gained_nothing_is_claimed(metric: str) -> None:
    """Three points are, in the mean, where the judged examples are searched on.

    For the worst class 1.5, where what pooled folds flatter is not taken off.
    """
    results = [
        evostep.polish(None, nothing_to_gain(seed, metric), metric, seed=seed, **QUICK)
        for seed in range(SETS)
    ]
    assert sum(result.verdict != "no confirmed gain" for result in results) <= 1
    assert sum(result.gain.value for result in results) / SETS < 0.012
