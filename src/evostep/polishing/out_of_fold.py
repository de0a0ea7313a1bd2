"""`evostep.out_of_fold`: for those who can train, a decision fitted on the training examples.

A network's outputs on examples that it was trained on are not what it gives on others. So networks
are trained without a fold, each example's outputs are those of networks that have not seen it, and
the decision fitted on these is put into a network that was trained on everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from evostep.polishing.folds import make_folds
from evostep.polishing.network import NOTHING_KNOWN, fold_in, outputs_of, pairs_of
from evostep.polishing.polish import polish_problems
from evostep.polishing.problem import Problem
from evostep.polishing.procedure import left_out
from evostep.polishing.result import NO_GAIN, Polished
from evostep.polishing.settings import Settings
from evostep.scoring.forms import as_tensor
from evostep.scoring.splitting import unweighted


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
    pairs, _ = pairs_of(nn.Identity(), loader, lambda _, batch: (batch[1], batch[1]))
    targets, unit = _targets([truth for _, truth in pairs])
    shape = (len(targets), targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1)
    posed = settings.problem(torch.zeros(shape), targets, unit)  # outputs come later
    parts = make_folds(posed.strata, folds, settings.seed, posed.groups)
    of_examples = parts
    if unit is not None:
        of_examples = parts.new_zeros(len(dataset)).scatter(0, unit, parts)  # type: ignore[arg-type]

    def trained_without(gone: tuple[int, ...]) -> nn.Module:
        kept = (~torch.isin(of_examples, torch.tensor(gone, dtype=torch.long))).nonzero().flatten()
        model = make_model()
        fit(model, Subset(dataset, kept.tolist()))
        return model

    def problem_of(outputs: Tensor) -> Problem:
        return settings.problem(outputs, targets, unit)

    nested = nested_outputs(lambda gone: outputs_of(trained_without(gone), loader).outputs, parts)
    model = trained_without(())
    problems = {fold: problem_of(outputs) for fold, outputs in nested.items()}
    result = polish_problems(problems[None], settings, parts, problems.__getitem__)
    networks = len(left_out(folds))
    result.sample_forwards = networks * len(of_examples)
    result.notes += (f"{networks} networks were trained",)
    if result.verdict != NO_GAIN:
        given = outputs_of(model, loader)
        exactly = settings.objective.of_outputs
        fold_in(result, problem_of(given.outputs), given.layer, model, loader, exactly=exactly)
    return model, result


def _targets(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the targets of rows, and the example of each where some have several."""
    targets = torch.cat([as_tensor(unweighted(truth)) for truth in batches])
    width = targets.shape[1] if targets.ndim == 2 else 0
    labels = width and bool(((targets == 0) | (targets == 1)).all())
    if labels and width > 1 and bool((targets.sum(1) == 1).all()):
        return targets.argmax(1), None  # one-hot
    if targets.ndim == 1 or labels:
        return targets, None
    unit = torch.arange(len(targets)).view(-1, *[1] * (targets.ndim - 1)).expand(targets.shape)
    counted = targets != NOTHING_KNOWN.ignore_index
    return targets[counted], unit[counted]


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
