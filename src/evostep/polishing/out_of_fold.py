"""`evostep.out_of_fold`: for those who can train, a decision fitted on the training examples.

A network's outputs on examples that it was trained on are not what it gives on others. So networks
are trained without a fold, each example's outputs are those of networks that have not seen it, and
the decision fitted on these is put into a network that was trained on everything.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from evostep.polishing.folds import make_folds
from evostep.polishing.polish import Settings, fold_in, outputs_of, polish_problems
from evostep.polishing.problem import Problem
from evostep.polishing.result import NO_GAIN, Polished


def out_of_fold(
    make_model: Callable[[], nn.Module],
    fit: Callable[[nn.Module, Dataset[Any]], object],
    dataset: Dataset[Any],
    metric: str = "worst-class-recall",
    *,
    folds: int = 3,
    batch_size: int = 256,
    **options: Any,
) -> tuple[nn.Module, Polished]:
    """Train networks without parts of the data, and polish one that is trained on all of it.

    The decision about a judged fold is fitted on outputs of networks that were trained without it
    and without the example itself, so (K^2 + K + 2) / 2 networks are trained: 7 for three folds, 16
    for five. Those that only serve for outputs are dropped as soon as they have given them.

    Args:
        make_model: returns a fresh network; called once for each training.
        fit: trains a network on a dataset, in place.
        dataset: examples (inputs, targets) by index.
        metric: see `evostep.polish`.
        folds: K, at least 3.
        batch_size: of the forwards that give outputs.
        **options: of `evostep.polish`: budget, population, prior, costs, weights, groups, draws,
            seed.

    Returns:
        The network trained on all examples, changed where a gain is confirmed, and the result,
        whose `apply` and `revert` change this network.

    Raises:
        InputError: as `evostep.polish`.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> _ = torch.manual_seed(0)
        >>> labels = torch.arange(120) % 2
        >>> data = TensorDataset(torch.randn(120, 2) + 3 * labels[:, None], labels)
        >>> def fit(model, part):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     for inputs, targets in torch.utils.data.DataLoader(part, 20):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        ...         optimizer.step()
        >>> model, result = out_of_fold(lambda: torch.nn.Linear(2, 2), fit, data, "accuracy")
        >>> result.n
        120
    """
    settings = Settings(metric=metric, folds=folds, **options)
    loader = DataLoader(dataset, batch_size)
    _, targets, _ = outputs_of(nn.Identity(), loader, lambda _, batch: (batch[1], batch[1]))
    shape = (len(targets), targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1)
    posed = settings.problem(torch.zeros(shape), targets)  # outputs come later
    parts = make_folds(posed.strata, folds, settings.seed, posed.groups)

    def outputs_without(*gone: int) -> tuple[nn.Module, Tensor]:
        kept = (~torch.isin(parts, torch.tensor(gone, dtype=torch.long))).nonzero().flatten()
        model = make_model()
        fit(model, Subset(dataset, kept.tolist()))
        return model, outputs_of(model, loader, None)[0]

    single = {fold: outputs_without(fold)[1] for fold in range(folds)}
    double = {pair: outputs_without(*pair)[1] for pair in combinations(range(folds), 2)}
    model, _ = outputs_without()

    def outputs_for(judging: int | None) -> Problem:
        """What decides about a judging fold may read: no network has seen example or fold."""
        outputs = torch.empty_like(single[0])
        for fold in range(folds):
            here = parts == fold
            if judging in (None, fold):
                outputs[here] = single[fold][here]
            else:
                outputs[here] = double[min(fold, judging), max(fold, judging)][here]
        return settings.problem(outputs, targets)

    problems = {fold: outputs_for(fold) for fold in (None, *range(folds))}
    result = polish_problems(problems[None], settings, parts, problems.__getitem__)
    trained = len(single) + len(double) + 1
    result.sample_forwards = trained * len(parts)
    result.notes += (f"{trained} networks were trained",)
    if result.verdict != NO_GAIN:
        fold_in(result, model, loader, None)
    return model, result
