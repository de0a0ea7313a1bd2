"""Metrics of decisions: pure functions of counts of (true class, decided class).

Counts have the shape (..., C, C), rows are true classes and columns are decisions; several binary
labels have (..., L, 2, 2). All leading dimensions are kept, so that many decisions, or many draws
of a bootstrap, are measured at once. Weighted examples count as their weights.

`CONFUSION_METRICS` is the table: a metric of decisions is one function and one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.errors import InputError


def tally(cells: Tensor, weights: Tensor | None, size: int) -> Tensor:
    """Return the sum of the weights (None: 1 each) in each of `size` cells, float64.

    The same bits each time, and without waiting for a GPU, where `torch.bincount` does neither.

    Example:
        >>> tally(torch.tensor([0, 2, 2]), None, 3).tolist()
        [1.0, 0.0, 2.0]
    """
    if cells.device.type == "cpu":
        return torch.bincount(cells, weights, minlength=size).double()
    each = torch.ones_like(cells, dtype=torch.float64) if weights is None else weights.double()
    return each.new_zeros(size).index_put_((cells,), each, accumulate=True)


def count(
    decisions: Tensor,
    targets: Tensor,
    classes: int,
    weights: Tensor | None = None,
    *,
    each: Tensor | None = None,
) -> Tensor:
    """Count examples by (true class, decision), for many decisions at once.

    Args:
        decisions: (..., n) integers, or (..., n, L) of zeros and ones for several labels.
        targets: (n,) integers, or (n, L).
        classes: C, the number of classes; 2 for labels.
        weights: what each example counts, broadcast against (..., n); None: 1.
        each: what each target counts besides, of the shape of `targets`; None: 1.

    Returns:
        float64, (..., C, C); (..., L, 2, 2) for several labels.

    Example:
        >>> count(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """
    several = targets.ndim == 2
    cell = targets * classes + decisions
    labels = targets.shape[1] if several else 1
    if several:
        cell = cell + torch.arange(labels, device=cell.device) * classes**2
    lead = cell.shape[: -targets.ndim]
    size = labels * classes**2
    rows = cell.reshape(lead.numel(), *targets.shape)
    start = torch.arange(len(rows), device=cell.device).view(-1, *[1] * targets.ndim) * size
    weight = None
    if weights is not None:
        weight = weights.double().unsqueeze(-1) if several else weights.double()
    if each is not None:
        weight = each.double() if weight is None else weight * each
    if weight is not None:
        weight = weight.expand(cell.shape).reshape(-1)
    counts = tally((rows + start).flatten(), weight, len(rows) * size)
    return counts.view(*lead, *([labels] if several else []), classes, classes)


def recalls(counts: Tensor) -> Tensor:
    """Return each class's share of right decisions, (..., C); NaN where a class does not occur."""
    return counts.diagonal(dim1=-2, dim2=-1) / counts.sum(-1)


def accuracy(counts: Tensor) -> Tensor:
    """Return the share of right decisions."""
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1) / counts.sum((-2, -1))


def balanced_accuracy(counts: Tensor) -> Tensor:
    """Return the mean recall over the classes that occur."""
    return recalls(counts).nanmean(-1)


def worst_class_recall(counts: Tensor) -> Tensor:
    """Return the smallest recall over the classes that occur.

    Example:
        >>> worst_class_recall(torch.tensor([[3.0, 1.0], [1.0, 1.0]])).item()
        0.5
    """
    return recalls(counts).nan_to_num(nan=torch.inf).amin(-1)


def g_mean(counts: Tensor) -> Tensor:
    """Return the geometric mean of the recalls of the classes that occur."""
    return recalls(counts).log().nanmean(-1).exp()


def f_scores(counts: Tensor, beta: float = 1.0) -> Tensor:
    """Return each class's F-beta, (..., C); NaN where it is neither true nor decided."""
    hits = counts.diagonal(dim1=-2, dim2=-1)
    square = beta * beta
    return (1 + square) * hits / (square * counts.sum(-1) + counts.sum(-2))


def macro_f(counts: Tensor, beta: float = 1.0) -> Tensor:
    """Return the mean F-beta over the classes that occur, or are decided."""
    return f_scores(counts, beta).nanmean(-1)


def positive_f(counts: Tensor, beta: float = 1.0) -> Tensor:
    """Return the F-beta of class 1 of two; the macro-F-beta where there are more."""
    if counts.shape[-1] > 2:
        return macro_f(counts, beta)
    return f_scores(counts, beta)[..., 1].nan_to_num(0.0)


def mcc(counts: Tensor) -> Tensor:
    """Return Matthews' correlation of truth and decision, in [-1, 1]; 0 where one is constant.

    The form for several classes of Gorodkin 2004,
    https://doi.org/10.1016/j.compbiolchem.2004.09.006.
    """
    true, decided, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
    hits = counts.diagonal(dim1=-2, dim2=-1).sum(-1)
    covariance = hits * total - (true * decided).sum(-1)
    spread = (total**2 - (true**2).sum(-1)) * (total**2 - (decided**2).sum(-1))
    return torch.where(spread > 0, covariance / spread.clamp(min=1e-300).sqrt(), 0.0)


def quadratic_kappa(counts: Tensor) -> Tensor:
    """Return Cohen's kappa with quadratic weights, for ordered classes, in [-1, 1].

    Example:
        >>> round(quadratic_kappa(torch.tensor([[2.0, 0.0], [1.0, 1.0]])).item(), 3)
        0.5
    """
    classes = torch.arange(counts.shape[-1], dtype=counts.dtype, device=counts.device)
    distance = (classes[:, None] - classes) ** 2
    total = counts.sum((-2, -1))
    by_chance = counts.sum(-1)[..., :, None] * counts.sum(-2)[..., None, :]
    expected = (distance * by_chance).sum((-2, -1)) / total
    observed = (distance * counts).sum((-2, -1))
    return torch.where(expected > 0, 1 - observed / expected.clamp(min=1e-300), 0.0)


def mean_cost(counts: Tensor, costs: Tensor) -> Tensor:
    """Return the mean cost of a decision; `costs` is (C, C), rows are true classes.

    Raises:
        InputError: a table for another number of classes.
    """
    if len(costs) != counts.shape[-1]:
        raise InputError(f"costs has {len(costs)} rows for {counts.shape[-1]} classes")
    matrix = costs.to(counts)
    return (matrix * counts).sum((-2, -1)) / counts.sum((-2, -1))


def _over_labels(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda counts: function(counts).nanmean(-1)


def _positive_recalls(counts: Tensor) -> Tensor:
    return recalls(counts)[..., 1]


@dataclass(frozen=True)
class ConfusionMetric:
    """A metric of decisions.

    Attributes:
        summary: one line.
        of_classes: counts (..., C, C) -> (...).
        of_labels: counts (..., L, 2, 2) of several binary labels -> (...).
        higher_is_better: the direction.
        span: the smallest and the largest value; None: not bounded.
    """

    summary: str
    of_classes: Callable[[Tensor], Tensor]
    of_labels: Callable[[Tensor], Tensor]
    higher_is_better: bool = True
    span: tuple[float, float] | None = (0.0, 1.0)

    def __call__(self, counts: Tensor, *, several: bool) -> Tensor:
        """Return the metric of counts: see `of_classes` and `of_labels`."""
        return self.of_labels(counts) if several else self.of_classes(counts)


CONFUSION_METRICS: dict[str, ConfusionMetric] = {
    "accuracy": ConfusionMetric("share of right decisions", accuracy, _over_labels(accuracy)),
    "balanced-accuracy": ConfusionMetric(
        "mean recall over classes", balanced_accuracy, _over_labels(balanced_accuracy)
    ),
    "worst-class-recall": ConfusionMetric(
        "smallest recall of a class",
        worst_class_recall,
        lambda counts: _positive_recalls(counts).nan_to_num(nan=torch.inf).amin(-1),
    ),
    "g-mean": ConfusionMetric(
        "geometric mean of the classes' recalls",
        g_mean,
        lambda counts: _positive_recalls(counts).log().nanmean(-1).exp(),
    ),
    "macro-f1": ConfusionMetric(
        "mean F1 over classes",
        macro_f,
        lambda counts: f_scores(counts)[..., 1].nan_to_num(0.0).mean(-1),
    ),
    "mcc": ConfusionMetric(
        "Matthews' correlation coefficient", mcc, _over_labels(mcc), span=(-1.0, 1.0)
    ),
    "quadratic-kappa": ConfusionMetric(
        "Cohen's kappa of ordered classes, quadratic weights",
        quadratic_kappa,
        _over_labels(quadratic_kappa),
        span=(-1.0, 1.0),
    ),
}


def f_beta(beta: float) -> ConfusionMetric:
    """Return F-beta: of class 1 of two, else the mean over classes or labels.

    Raises:
        ValueError: beta is not a finite number > 0.
    """
    if not 0 < beta < torch.inf:
        raise ValueError(f"beta of f-beta must be a finite number > 0, got {beta}")
    return ConfusionMetric(
        f"F-beta with beta {beta:g}",
        lambda counts: positive_f(counts, beta),
        lambda counts: f_scores(counts, beta)[..., 1].nan_to_num(0.0).mean(-1),
    )


def cost(matrix: Tensor) -> ConfusionMetric:
    """Return the mean cost of a decision by a table; lower is better.

    Args:
        matrix: (C, C) finite numbers; ``matrix[t, d]`` is what deciding d costs where t is true.

    Raises:
        ValueError: a matrix that is not square, or holds what is not finite.
    """
    try:
        matrix = torch.as_tensor(matrix, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"costs must be a table of numbers, got {matrix!r}") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"costs must be a square table, got the shape {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError("costs must be finite numbers")
    return ConfusionMetric(
        "mean cost of a decision",
        lambda counts: mean_cost(counts, matrix),
        _over_labels(lambda counts: mean_cost(counts, matrix)),
        higher_is_better=False,
        span=None,
    )
