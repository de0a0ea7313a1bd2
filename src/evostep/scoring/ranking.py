"""Metrics of the order of scores: the recall at a precision, the precision at k.

Pure functions, float64. Examples are put in the order of their scores; what has equal scores is
taken together, so that the order of the examples never counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def recall_at_precision(
    scores: Tensor, positive: Tensor, precision: float, weights: Tensor | None = None
) -> Tensor:
    """Return the largest recall among the thresholds that reach a precision; 0 where none does.

    Args:
        scores: (..., n), higher means more likely positive.
        positive: (..., n) zeros and ones.
        precision: in (0, 1].
        weights: what each example counts, broadcast against (..., n); None: 1.

    Returns:
        (...), float64 in [0, 1]; NaN where nothing is positive.

    Example:
        >>> scores, positive = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 1])
        >>> recall_at_precision(scores, positive, 0.75).item()  # three of the first four
        1.0
        >>> round(recall_at_precision(scores, positive, 0.8).item(), 3)
        0.333
    """
    order = _order(scores, positive, weights)
    reached = order.last & (order.hits >= (precision - 1e-12) * order.taken) & (order.taken > 0)
    hits = torch.where(reached, order.hits, 0.0).amax(-1)
    return hits / order.hits[..., -1]


def precision_at_k(
    scores: Tensor, positive: Tensor, k: int, weights: Tensor | None = None
) -> Tensor:
    """Return the share of positives among the k highest scores.

    Where a tie crosses the border, each of its members is among them with equal probability, and
    the mean over these is returned.

    Args:
        scores: (..., n).
        positive: (..., n) zeros and ones.
        k: how many are taken; all of them where there are fewer.
        weights: how often each counts among the k, broadcast against (..., n); None: once.

    Returns:
        (...), float64 in [0, 1].

    Example:
        >>> precision_at_k(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 1]), 2).item()
        0.5
        >>> precision_at_k(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([1, 0, 1]), 2).item()
        0.75
    """
    order = _order(scores, positive, weights)
    ends = order.last, torch.full_like(order.taken, torch.inf)
    after = [  # at the end of each one's tie
        torch.where(ends[0], x, ends[1]).flip(-1).cummin(-1).values.flip(-1)
        for x in (order.taken, order.hits)
    ]
    before = [  # and at its beginning
        torch.cat([x.new_zeros(*x.shape[:-1], 1), torch.where(order.last, x, 0.0)[..., :-1]], -1)
        .cummax(-1)
        .values
        for x in (order.taken, order.hits)
    ]
    size, hits = after[0] - before[0], after[1] - before[1]
    start = order.taken - order.weights
    inside = torch.minimum((k - start).clamp(min=0.0), order.weights)
    share = torch.where(size > 0, hits / size, 0.0)
    return (inside * share).sum(-1) / inside.sum(-1)


class _Order(NamedTuple):
    """Examples by falling score, (..., n) each: weights, their running sum, that of positives."""

    weights: Tensor
    taken: Tensor
    hits: Tensor
    last: Tensor  # whether the next one has another score


def _order(scores: Tensor, positive: Tensor, weights: Tensor | None) -> _Order:
    ordered, places = scores.sort(dim=-1, descending=True, stable=True)
    each = torch.ones_like(ordered, dtype=torch.float64)
    if weights is not None:
        each = weights.double().expand(ordered.shape).gather(-1, places)
    hits = each * positive.expand(ordered.shape).gather(-1, places)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[..., :-1] = ordered[..., :-1] != ordered[..., 1:]
    return _Order(each, each.cumsum(-1), hits.cumsum(-1), last)
