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

from evostep.interrupts import Undoing
from evostep.polishing.budget import Budget
from evostep.polishing.folds import make_folds
from evostep.polishing.network import Given, Spent, Subject, fold_in, outputs_of
from evostep.polishing.polish import polish_problems
from evostep.polishing.problem import Problem
from evostep.polishing.procedure import left_out
from evostep.polishing.result import NO_GAIN, Polished
from evostep.polishing.settings import Settings
from evostep.polishing.starts import check_prior
from evostep.scoring.batches import Forward
from evostep.scoring.forms import Known
from evostep.scoring.isolation import preserved_rng


def out_of_fold(
    make_model: Callable[[], nn.Module],
    fit: Callable[[nn.Module, Dataset[Any]], object],
    dataset: Dataset[Any],
    metric: Any = "worst-class-recall",
    *,
    folds: int = 3,
    batch_size: int = 256,
    budget: Budget = None,
    population: int = 16,
    prior: Any = None,
    costs: Any = None,
    weights: Any = None,
    groups: Sequence[Any] | None = None,
    forward: Forward | None = None,
    draws: int | None = None,
    seed: int = 0,
    watch: Callable[[float, float], None] | None = None,
    higher_is_better: bool | None = None,
    class_dim: int | None = None,
    ignore_index: int = Known.ignore_index,
) -> tuple[nn.Module, Polished]:
    """Train networks without parts of the data, and polish one that is trained on all of it.

    The decision about a judged fold is fitted on outputs of networks that were trained without it
    and without the example itself, so (K^2 + K + 2) / 2 networks are trained: 7 for three folds, 16
    for five. Those that only serve for outputs are dropped as soon as they have given them.

    Args:
        make_model: returns a fresh network; called once for each training, and once before.
        fit: trains a network on a dataset, in place.
        dataset: examples by index, which a DataLoader makes batches of: (inputs, targets), or what
            else `evostep.polish` takes, with weights or as dictionaries.
        metric: see `evostep.polish`.
        folds: K, at least 3.
        batch_size: of the forwards that give outputs.
        budget: as in `evostep.polish`, as all that follow.
        population: of a generation.
        prior: (C,) class frequencies.
        costs: (C, C) table of the metric ``cost``.
        weights: (n,) what each example counts; None: what comes with the dataset.
        groups: n names; examples of a group are trained on, judged and drawn together.
        forward: ``forward(model, batch) -> (outputs, targets)``.
        draws: of the bootstrap.
        seed: of folds, noise and draws.
        watch: called as the search goes on.
        higher_is_better: the direction of a metric that has no name.
        class_dim: where the classes are.
        ignore_index: marks targets that do not count.

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
    settings = Settings(
        metric,
        folds,
        budget,
        population,
        prior,
        costs,
        weights,
        groups,
        draws,
        seed,
        watch,
        higher_is_better,
    )
    known = Known(class_dim=class_dim, ignore_index=ignore_index)
    loader = DataLoader(dataset, batch_size)

    spent = Spent()

    def given_by(model: nn.Module) -> Given:
        given = outputs_of(model, loader, forward, known)
        spent.sample_forwards += given.examples
        return given

    def problem_of(outputs: Tensor) -> Problem:
        return settings.problem(outputs, posed.targets, posed.unit, posed.weights)

    with Undoing(), preserved_rng():
        posed = given_by(make_model())  # a forward tells how outputs and targets belong together
    blank = problem_of(torch.zeros_like(posed.outputs))
    check_prior(prior, blank)
    parts = make_folds(blank.strata, folds, seed, blank.groups)
    of_examples = parts
    if posed.unit is not None:
        of_examples = parts.new_zeros(posed.examples).scatter(0, posed.unit, parts)

    def trained_without(gone: tuple[int, ...]) -> nn.Module:
        kept = (~torch.isin(of_examples, torch.tensor(gone, dtype=torch.long))).nonzero().flatten()
        model = make_model()
        fit(model, Subset(dataset, kept.tolist()))
        return model

    nested = nested_outputs(lambda gone: given_by(trained_without(gone)).outputs, parts)
    model = trained_without(())
    problems = {fold: problem_of(outputs) for fold, outputs in nested.items()}
    result = polish_problems(problems[None], settings, parts, problems.__getitem__)
    networks = len(left_out(folds))
    result.notes += (f"{networks} networks were trained",)
    if result.verdict != NO_GAIN:
        subject = Subject(model, loader, forward, known, given_by(model), spent=spent)
        exactly = settings.objective.of_outputs
        fold_in(result, problem_of(subject.given.outputs), subject, exactly=exactly)
    result.sample_forwards = spent.sample_forwards
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
