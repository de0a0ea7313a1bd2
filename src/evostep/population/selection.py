"""Who breeds and who survives, as pure functions of scores; higher is better, failures rank last.

Cui et al. 2018 (https://arxiv.org/abs/1810.06773) draw parents by a roulette wheel on fitness and
let survive by an m-elitist rule. Fitness may be negative here (minus a loss), where a wheel
proportional to fitness is not defined and one shifted to positive values depends on the worst
individual; so the wheel is proportional to rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evostep.strategies.shaping import centered_rank


def roulette(scores: Sequence[float]) -> Tensor:
    """Return the probability with which each individual is drawn: proportional to its rank.

    The worst of n has 1 share, the best n; equal scores share the mean of theirs. So any strictly
    increasing transform of fitness gives the same wheel. One whose score is not finite has none.

    Args:
        scores: one for each individual, higher is better.

    Returns:
        float64 probabilities, shape (n,), with sum 1; all zero where no score is finite.

    Example:
        >>> roulette([-3.0, -1.0]).tolist() == [1 / 3, 2 / 3]
        True
        >>> roulette([0.5, float("nan"), 0.5]).tolist()
        [0.5, 0.0, 0.5]
    """
    shares = torch.zeros(len(scores), dtype=torch.float64)
    sound = [i for i, score in enumerate(scores) if math.isfinite(score)]
    if not sound:
        return shares
    n = len(sound)
    shares[sound] = (centered_rank([scores[i] for i in sound]) + 0.5) * (n - 1) + 1.0
    return shares / shares.sum()


def draw_parents(scores: Sequence[float], rho: int, generator: torch.Generator) -> tuple[int, ...]:
    """Draw `rho` different parents by `roulette`, the first the likeliest to be a good one.

    Returns:
        Their numbers; fewer where fewer have a finite score, none where none has.

    Example:
        >>> sorted(draw_parents([0.1, 0.2, float("nan")], 2, torch.Generator().manual_seed(0)))
        [0, 1]
    """
    wheel = roulette(scores)
    count = min(rho, int((wheel > 0).sum()))
    if count == 0:
        return ()
    return tuple(torch.multinomial(wheel, count, generator=generator).tolist())


def survivors(
    scores: Sequence[float], size: int, elite: int, generator: torch.Generator
) -> list[int]:
    """Choose who survives, m-elitist: the best `elite`, and others drawn at random.

    Where scores are equal the one that comes first goes first, so parents, listed before their
    offspring, are not displaced by equals. Those that failed survive only where there are too few
    others.

    Args:
        scores: of parents and then offspring, at least `size`, higher is better.
        size: how many survive.
        elite: how many of them are the best; the rest is drawn uniformly, without replacement.
        generator: what draws them.

    Returns:
        Numbers of the survivors, the elite first, best first.

    Example:
        >>> survivors([0.3, 0.9, 0.5, 0.9], 2, 2, torch.Generator())
        [1, 3]
    """
    failed = [i for i, score in enumerate(scores) if not math.isfinite(score)]
    sound = [i for i, score in enumerate(scores) if math.isfinite(score)]
    sound.sort(key=lambda i: -scores[i])  # stable
    best, others = sound[:elite], sound[elite:]
    order = torch.randperm(len(others), generator=generator).tolist()
    return [*best, *(others[k] for k in order), *failed][:size]


def recombine(parents: Sequence[Tensor]) -> Tensor:
    """Average tensors: new, float32 or wider. Equal parents give their own bits again.

    Example:
        >>> recombine([torch.tensor([1.0, 0.1]), torch.tensor([3.0, 0.1])]).tolist()
        [2.0, 0.10000000149011612]
    """
    first = parents[0].detach()
    dtype = torch.promote_types(first.dtype, torch.float32)
    mean = first.to(dtype, copy=True)
    if len(parents) > 1:
        # differences, since a sum of n equal numbers, divided by n, may differ in the last bit
        shift = torch.zeros_like(mean)
        for other in parents[1:]:
            shift += other.detach().to(dtype) - first.to(dtype)
        mean += shift / len(parents)
    return mean
