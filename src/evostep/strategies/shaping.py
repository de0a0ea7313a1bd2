"""From fitness scores to utilities: the weights of the members in an update.

Members with the same score get the same utility. With accuracy as the fitness ties are common,
and a rank that depends on a member's position in the list would be a random step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Shaping = Literal["centered-rank", "z-score"]
SHAPINGS: tuple[str, ...] = get_args(Shaping)


def centered_rank(scores: Sequence[float]) -> Tensor:
    """Rank scores from -0.5 (worst) to 0.5 (best), ties sharing the mean of their ranks.

    Invariant to any strictly increasing transform of the scores. Scores that are not finite
    (a member that failed) share the last ranks. Section 2.1 of Salimans et al. 2017
    (https://arxiv.org/abs/1703.03864), whose own code assigns tied scores different ranks.

    Args:
        scores: one for each member, higher is better; at least two.

    Returns:
        float64 utilities, shape (n,), with sum 0; all zero where all scores are equal.

    Example:
        >>> centered_rank([0.1, 0.9, 0.5]).tolist()
        [-0.5, 0.5, 0.0]
        >>> centered_rank([1.0, float("nan"), 1.0]).tolist()
        [0.25, -0.5, 0.25]
    """
    values = torch.as_tensor(scores, dtype=torch.float64)
    n = len(values)
    values = torch.where(values.isfinite(), values, -torch.inf)
    # rank of i = number below i + half of the others equal to i
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    rank = (below + up_to - 1).to(torch.float64) / 2
    return rank / (n - 1) - 0.5 if n > 1 else torch.zeros_like(values)


def z_score(scores: Sequence[float]) -> Tensor:
    """Standardise scores: (score - mean) / std, with the population's std (ddof 0).

    Scores that are not finite count as the worst finite one.

    Args:
        scores: one for each member, higher is better.

    Returns:
        float64 utilities, shape (n,); all zero where the scores have no spread.

    Example:
        >>> z_score([1.0, 3.0]).tolist()
        [-1.0, 1.0]
        >>> z_score([2.0, 2.0]).tolist()
        [0.0, 0.0]
    """
    values = torch.as_tensor(scores, dtype=torch.float64)
    finite = values.isfinite()
    if not finite.any():
        return torch.zeros_like(values)
    worst = values[finite].min()
    # Brought to [0, 1] first: squares of scores near 1e-200 or 1e200 would be 0 or infinite, and
    # the std of equal scores need not be exactly zero. The halves keep the range itself finite.
    height = torch.where(finite, values, worst) / 2 - worst / 2
    top = height.max()
    if top == 0:
        return torch.zeros_like(values)
    height = height / top
    return (height - height.mean()) / height.std(correction=0)


def log_rank(scores: Sequence[float]) -> Tensor:
    """Return utilities of natural evolution strategies: most for the best, none below middle.

    ``max(0, ln(n/2 + 1) - ln k)`` for the member ranked k (the best is 1), divided by its sum,
    minus 1/n: section 3.1 of Wierstra et al. 2014 (https://arxiv.org/abs/1106.4487). Here members
    with the same score share the mean of their utilities, and scores that are not finite share the
    last ranks. Invariant to any strictly increasing transform of the scores.

    Args:
        scores: one for each member, higher is better.

    Returns:
        float64 utilities, shape (n,), with sum 0; all zero where all scores are equal.

    Example:
        >>> [round(u, 3) for u in log_rank([0.5, 0.9, 0.1, 0.2]).tolist()]
        [0.02, 0.48, -0.25, -0.25]
        >>> log_rank([1.0, 1.0]).tolist()
        [0.0, 0.0]
    """
    return log_rank_rows(torch.as_tensor(scores, dtype=torch.float64))


def log_rank_rows(scores: Tensor) -> Tensor:
    """Return the utilities of `log_rank` along the last dimension of many scores at once.

    Args:
        scores: (..., n), higher is better.

    Returns:
        float64, (..., n).

    Example:
        >>> same = log_rank([0.5, 0.9, 0.1, 0.1])
        >>> bool((log_rank_rows(torch.tensor([[0.5, 0.9, 0.1, 0.1]]))[0] == same).all())
        True
    """
    values = torch.where(scores.isfinite(), scores, -torch.inf).double()
    n = values.shape[-1]
    rank = torch.arange(1, n + 1, dtype=torch.float64)
    raw = (math.log(n / 2 + 1) - rank.log()).clamp(min=0)
    total = torch.cat([raw.new_zeros(1), (raw / raw.sum()).cumsum(0)]).to(values.device)
    # members that are tied hold the ranks above + 1 ... above + tied
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    above, tied = n - up_to, up_to - below
    utilities = (total[above + tied] - total[above]) / tied - 1 / n
    return torch.where(tied == n, 0.0, utilities)


_SHAPERS: dict[str, Callable[[Sequence[float]], Tensor]] = {
    "centered-rank": centered_rank,
    "z-score": z_score,
}


def shape_scores(scores: Sequence[float], shaping: Shaping) -> Tensor:
    """Apply the shaping of that name: see `centered_rank` and `z_score`."""
    return _SHAPERS[shaping](scores)
