"""Whether a network expects other class frequencies than those of the examples: a score test.

Logit adjustment needs the class frequencies of training. Where nobody gives them those of the
examples stand in, which is right only if both are alike. A network whose probabilities are right
where it was trained gives each class, in the mean over examples, about the share that it has there
only if the shares are those of training. The mean of (y = c) - p(c | x) is the gradient of the
log-likelihood in a bias of output c: Rao 1948, https://doi.org/10.1017/S0305004100023987. What
shares of training do to outputs: Saerens et al. 2002, https://doi.org/10.1162/089976602753284446.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from evostep.polishing.problem import Problem

LEVEL = 0.001  # of all classes together
RATIO = 1.5  # of shares; a smaller one moves no border by much


def other_frequencies(problem: Problem, names: Sequence[str] = ()) -> str | None:
    """Return what tells that the network was trained on other class frequencies; None: nothing.

    Args:
        problem: outputs of the network as it was trained, and targets.
        names: of classes or labels, where they are known.

    Example:
        >>> targets = torch.arange(400) % 2
        >>> outputs = torch.stack((targets * -2.0 + 3.0, torch.zeros(400)), 1)  # prefers class 0
        >>> other_frequencies(Problem(outputs, targets, "classes"))
        'the model expects 84.2% of class 0, which 50.0% of these examples are'
    """
    expected = problem.probabilities(problem.outputs)
    if problem.kind == "classes":
        truth = torch.nn.functional.one_hot(problem.targets, problem.classes).double()
    else:
        truth = problem.targets.view(expected.shape).double()
    weight = problem.weights
    weight = torch.ones(len(problem), dtype=torch.float64) if weight is None else weight.double()
    weight = weight[:, None] / weight.sum()
    share, mean = (weight * truth).sum(0), (weight * expected).sum(0)
    off = weight * (truth - expected)
    z = off.sum(0) / _deviation(off, weight, expected, problem.groups)
    sure = NormalDist().inv_cdf(1 - LEVEL / (2 * len(z)))
    far = torch.maximum(share / mean, mean / share) >= RATIO
    found = z.abs() * far
    c = int(found.argmax())
    if not float(found[c]) > sure:
        return None
    number = 1 if problem.kind == "binary" else c
    name = names[number] if names else f"{'label' if problem.several else 'class'} {number}"
    return (
        f"the model expects {100 * float(mean[c]):.1f}% of {name}, which "
        f"{100 * float(share[c]):.1f}% of these examples are"
    )


def _deviation(off: Tensor, weight: Tensor, expected: Tensor, groups: Tensor | None) -> Tensor:
    """Return the standard deviation of the sum of `off`, (C,): as seen, or as expected if larger.

    That as seen is too small for a class that hardly occurs, the other one where the network is
    too sure of itself, or examples of a group are alike.
    """
    if groups is not None:
        off = off.new_zeros(int(groups.max()) + 1, off.shape[1]).index_add_(0, groups, off)
    seen = (off - off.mean(0)).square().sum(0)
    told = (weight.square() * expected * (1 - expected)).sum(0)
    return torch.maximum(seen, told).sqrt().clamp(min=1e-300)
