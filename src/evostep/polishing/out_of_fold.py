"""`evostep.out_of_fold`: for those who can train, a decision fitted on the training examples.

A network's outputs on examples that it was trained on are not what it gives on others. So networks
are trained without a fold, each example's outputs are those of networks that have not seen it, and
the decision fitted on these is put into a network that was trained on everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from evostep.polishing.folds import make_folds
from evostep.polishing.network import fold_in, outputs_of
from evostep.polishing.polish import polish_problems
from evostep.polishing.procedure import left_out
from evostep.polishing.result import NO_GAIN, Polished
from evostep.polishing.settings import Settings


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

    def trained_without(gone: tuple[int, ...]) -> nn.Module:
        kept = (~torch.isin(parts, torch.tensor(gone, dtype=torch.long))).nonzero().flatten()
        model = make_model()
        fit(model, Subset(dataset, kept.tolist()))
        return model

    nested = nested_outputs(lambda gone: outputs_of(trained_without(gone), loader)[0], parts)
    model = trained_without(())
    problems = {fold: settings.problem(outputs, targets) for fold, outputs in nested.items()}
    result = polish_problems(problems[None], settings, parts, problems.__getitem__)
    networks = len(left_out(folds))
    result.sample_forwards = networks * len(parts)
    result.notes += (f"{networks} networks were trained",)
    if result.verdict != NO_GAIN:
        outputs, _, layer = outputs_of(model, loader)
        fold_in(result, settings.problem(outputs, targets), layer, model, loader)
    return model, result


def nested_outputs(
    outputs_without: Callable[[tuple[int, ...]], Tensor], parts: Tensor
) -> dict[int | None, Tensor]:
    """Return the outputs that the choice for each judging fold may read, and (None) the final one.

    Args:
        outputs_without: folds -> outputs for all examples of what was trained without these folds.
        parts: (n,) the fold of each example.

    Returns:
        For a judging fold j: an example of fold i has its outputs from what was trained without i
        and j; an example of j itself from what was trained without j. For None: without i.
    """
    folds = int(parts.max()) + 1
    found = {gone: outputs_without(gone) for gone in left_out(folds) if gone}
    nested: dict[int | None, Tensor] = {}
    for judging in (None, *range(folds)):
        nested[judging] = torch.empty_like(found[0,])
        for fold in range(folds):
            gone = {fold} if judging is None else {fold, judging}
            here = parts == fold
            nested[judging][here] = found[tuple(sorted(gone))][here]
    return nested
