"""Who cannot win any more: bounds on paired differences from a part of the examples.

Racing is due to Maron & Moore 1993, "Hoeffding Races",
https://proceedings.neurips.cc/paper/1993/hash/02a32ad2669e6fe298e607fe7cc0e1a0-Abstract.html: drop
what is worse than the best so far by more than a bound allows. They bound each candidate's mean by
its range; Mnih, Szepesvari & Audibert 2008, "Empirical Bernstein stopping", by its variance. Here
candidates are compared in pairs, example by example, and what is asked is not how they would do on
examples to come but how they will have done on all n of these, so samples are drawn without
replacement (Bardenet & Maillard 2015, https://arxiv.org/abs/1309.4029).

The n examples lie in strata h of N_h, of which n_h were seen, in random order. d_j is the
difference of a member's score to a rival's on example j. The difference on all of them, a sum, is
estimated by

    D = sum_h N_h / n_h * sum_{j seen in h} d_j

Whatever the sum really is, D lies around it with the variance (Cochran 1977, "Sampling
Techniques", chapter 5)

    V = sum_h N_h^2 / n_h * (1 - n_h / N_h) * q_h

where q_h may be the mean of d_j^2: with the mean taken off it would be the variance, which is
smaller. So if the member will not have lost in the end, the sum being 0 at least,

    (-D - c) / sqrt(V + c^2) > z

happens about as often as a standard normal number is above z, or less. Three things make that hold
where the examples that differ are few, and where differences have heavy tails:

- the sum is divided by a root of squares of the same numbers. Large ones are in both, so that such
  ratios have light tails where the numbers have not (de la Pena, Klass & Lai 2007,
  https://doi.org/10.1214/07-PS119), and k examples that differ never give more than sqrt(k);
- q_h is at least what is usual in that stratum, for the members of a generation are alike: one of
  which no difference was seen there may still have some;
- c is as if half an example more had been seen, on which the member gained as much as it could: 1
  where scores lie in [0, 1], otherwise twice the most by which any member was seen to differ. So no
  tie is dropped, and a single prediction that differs gives 1, which is not enough at any level
  below 0.15.

What none of it can see: gains that are large, and so rare that no member has met one.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor

_UNSEEN = 0.5  # of an example


class Strata:
    """A generation's examples in groups, and which of them have been seen.

    Args:
        order: (n,) the examples' numbers; neighbours come into one group.
        groups: how many of (nearly) one size, at least 1 and at most n.
        generator: of the order within each group.

    Example:
        >>> strata = Strata(torch.arange(6), 2, torch.Generator().manual_seed(0))
        >>> sorted(strata.draw(torch.tensor([3, 0])).tolist()), len(strata.draw(strata.left))
        ([0, 1, 2], 3)
    """

    def __init__(self, order: Tensor, groups: int, generator: torch.Generator) -> None:
        edges = [len(order) * h // groups for h in range(groups + 1)]
        parts = [order[a:b] for a, b in pairwise(edges)]
        self.sizes = torch.tensor([len(part) for part in parts])  # N_h
        self.seen = torch.zeros_like(self.sizes)  # n_h
        self.rows = order[:0]  # those seen, in the order in which they were drawn
        self._parts = [part[torch.randperm(len(part), generator=generator)] for part in parts]
        self._of_row = order[:0]

    @property
    def left(self) -> Tensor:
        """How many of each group have not been seen, (groups,)."""
        return self.sizes - self.seen

    def draw(self, counts: Tensor) -> Tensor:
        """Take so many more of each group, (groups,); return their numbers, at random from each."""
        ends = self.seen + counts
        bounds = zip(self.seen.tolist(), ends.tolist(), strict=True)
        new = [part[a:b] for part, (a, b) in zip(self._parts, bounds, strict=True)]
        self.seen = ends
        self.rows = torch.cat([self.rows, *new])
        self._of_row = torch.cat(
            [self._of_row, torch.arange(len(counts)).repeat_interleave(counts)]
        )
        return torch.cat(new)

    def sums(self, values: Tensor) -> Tensor:
        """Sum what was seen in each group: (k, seen) -> (k, groups)."""
        sums = values.new_zeros(len(values), len(self.sizes))
        return sums.index_add_(1, self._of_row, values)

    def total(self, values: Tensor) -> Tensor:
        """Estimate the sums over all examples, seen or not: (k, seen) -> (k,)."""
        return self.sums(values) @ (self.sizes / self.seen.clamp(min=1)).to(values.dtype)


def behind(
    differences: Tensor, strata: Strata, usual: Tensor, z: float, limit: float = math.inf
) -> Tensor:
    """Return which members cannot catch up with a rival, nor draw level, but with the chance of z.

    Args:
        differences: (k, seen) float64, each member's scores minus the rival's.
        strata: which were seen.
        usual: (groups,) the mean square of a difference that is usual there.
        z: see `quantile`.
        limit: what no difference is above.

    Returns:
        (k,) bool.

    Example:
        >>> strata = Strata(torch.arange(100), 1, torch.Generator().manual_seed(0))
        >>> rows = strata.draw(torch.tensor([50]))
        >>> differences = torch.zeros(3, 50, dtype=torch.float64)
        >>> differences[1, :8], differences[2, :3] = -1.0, -1.0
        >>> behind(differences, strata, torch.zeros(1), quantile(0.01)).tolist()
        [False, True, False]
    """
    share = strata.seen / strata.sizes
    weight = (strata.sizes / strata.seen.clamp(min=1)).square() * (1 - share)
    squares = torch.maximum(strata.sums(differences.square()), usual * strata.seen)
    variance = squares @ weight.to(squares.dtype)  # V
    c = _UNSEEN * min(limit, 2 * float(differences.abs().max()))
    return -strata.total(differences) - c > z * (variance + c * c).sqrt()


def quantile(level: float) -> float:
    """Return the number that a standard normal one exceeds with this probability, in (0, 1).

    Example:
        >>> round(quantile(0.025), 2)
        1.96
    """
    return -NormalDist().inv_cdf(level)


def falling(values: Tensor, weights: Tensor) -> Tensor:
    """Return the nearest values that nowhere rise: means over neighbours that were out of order.

    Pools adjacent violators, as isotonic regression does (Ayer et al. 1955).

    Args:
        values: (groups,).
        weights: (groups,) of each, above 0.

    Example:
        >>> falling(torch.tensor([4.0, 1.0, 2.0, 0.0]), torch.ones(4)).tolist()
        [4.0, 1.5, 1.5, 0.0]
    """
    blocks: list[tuple[float, float, int]] = []  # weighted sum, weight, groups
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value * weight, weight, 1)
        while blocks and blocks[-1][0] * block[1] <= block[0] * blocks[-1][1]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    means = [total / weight for total, weight, _ in blocks]
    return torch.tensor(means, dtype=values.dtype).repeat_interleave(
        torch.tensor([groups for *_, groups in blocks])
    )


def share_out(count: int, left: Tensor, usual: Tensor) -> Tensor:
    """Return how many examples of each group to see next, so that V becomes smallest.

    In proportion to the group's size times the root of `usual` (Neyman 1934; Cochran 1977,
    chapter 5), as far as there are so many left.

    Args:
        count: how many in all, at most what is left.
        left: (groups,) int64.
        usual: (groups,) the mean square of a difference there.

    Example:
        >>> share_out(60, torch.tensor([50, 50, 50]), torch.tensor([9.0, 1.0, 0.0])).tolist()
        [45, 15, 0]
    """
    taken = torch.zeros_like(left)
    weights = left * usual.double().clamp(min=0).sqrt()
    while (rest := count - int(taken.sum())) > 0:
        open_groups = taken < left
        weight = torch.where(open_groups, weights, 0.0)
        if not bool(weight.sum() > 0):  # all that may differ has been seen
            weight = torch.where(open_groups, left, 0).double()
        wished = rest * weight / weight.sum()
        more = torch.minimum(wished.floor().long(), left - taken)
        if not bool(more.any()):
            more[int(wished.argmax())] = 1
        taken += more
    return taken


def looks(n: int, first: int) -> list[int]:
    """Return after how many examples of n to ask who cannot win any more.

    What has been seen doubles, but by no more than a quarter of all: most can be told near the end.

    Example:
        >>> looks(5000, 313)
        [313, 626, 1252, 2502, 3752]
    """
    found = []
    seen = first
    while seen < n:
        found.append(seen)
        seen += min(seen, max(1, math.ceil(n / 4)))
    return found
