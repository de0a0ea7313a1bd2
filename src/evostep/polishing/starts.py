"""Simple starts: what is best known without a search.

Logit adjustment subtracts tau times the logarithm of the class frequencies from the logits: Menon
et al. 2021, "Long-tail learning via logit adjustment", https://arxiv.org/abs/2007.07314, section
4.1, post hoc. tau = 1 is right for the balanced error; for other metrics tau is tuned. A
temperature times tau is one number where only decisions count, so tau alone is tuned. Where
probabilities count, the temperature of the largest likelihood is a start: Guo et al. 2017, "On
calibration of modern neural networks", https://arxiv.org/abs/1706.04599, section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem

STARTS = ("checkpoint", "logit adjustment", "tuned logit adjustment")
# Where a decision has a scale. The search goes on from the last one.
OF_SCALE = ("temperature", "temperature and tuned logit adjustment")
# In steps of an eighth from nothing to three times the full adjustment.
TAUS = torch.arange(0, 25, dtype=torch.float64) / 8


def adjustment(problem: Problem, rows: Tensor, prior: Tensor | None = None) -> Tensor:
    """Return the biases of logit adjustment with tau = 1, (R, C), of mean 0 for classes.

    Args:
        problem: whose targets tell the frequencies.
        rows: (R, n), how often each example counts; frequencies have half an example more.
        prior: (C,) frequencies of the classes in training (of class 1 of a label), instead.
    """
    if prior is not None:
        frequency = prior.expand(len(rows), -1)
    else:
        weight = rows.double() if problem.weights is None else rows * problem.weights
        truth = problem.targets
        hits = truth if problem.several else truth[:, None]
        if problem.kind == "classes":
            hits = torch.nn.functional.one_hot(truth, problem.classes)
        per_outcome = 0.5 * (1 if problem.kind == "classes" else 2)
        total = weight.sum(1, keepdim=True) + per_outcome * (
            problem.classes if problem.kind == "classes" else 1
        )
        frequency = (weight @ hits.double() + 0.5) / total
    if problem.kind == "classes":
        bias = -frequency.log()
        return bias - bias.mean(1, keepdim=True)
    return (1 - frequency).log() - frequency.log()


def check_prior(prior: object, problem: Problem) -> Tensor | None:
    """Return frequencies that sum to 1 for classes, or raise an InputError."""
    if prior is None:
        return None
    values = torch.as_tensor(prior, dtype=torch.float64)
    if values.shape != (problem.biases,) or not values.isfinite().all() or (values <= 0).any():
        raise InputError(
            f"prior must be {problem.biases} numbers > 0, one for each output, got {prior}"
        )
    if problem.kind == "classes":
        return values / values.sum()
    if (values >= 1).any():
        raise InputError(f"prior of a label is the share of examples that have it, got {prior}")
    return values


def starts_of(problem: Problem) -> tuple[str, ...]:
    """Return the names of a problem's starts, the last of which is searched on from."""
    return (*STARTS, *OF_SCALE) if problem.scaled else STARTS


def fit_starts(
    problem: Problem, objective: Objective, rows: Tensor, prior: Tensor | None = None
) -> Tensor:
    """Return the biases of each of `starts_of`, fitted on each set of examples: (S, R, P).

    Of several tau with the same score the smallest is taken.
    """
    full = adjustment(problem, rows, prior)  # (R, C)
    if problem.scaled:
        full = torch.cat([full, torch.zeros(len(full), 1)], 1)
    fitted = []
    for r, row in enumerate(rows):
        there = row.nonzero().flatten()
        part, often = subset(problem, there), row[there]
        nothing = torch.zeros_like(full[r])
        found = [nothing, full[r], _tune(part, objective, often, full[r], nothing)]
        if problem.scaled:
            cooled = nothing.clone()
            cooled[-1] = fit_temperature(part, often)
            found += [cooled, _tune(part, objective, often, full[r], cooled)]
        fitted.append(torch.stack(found))
    return torch.stack(fitted, 1)


def _tune(
    part: Problem, objective: Objective, often: Tensor, full: Tensor, beside: Tensor
) -> Tensor:
    """Return the adjustment with the best tau, added to what stands beside it, (P,)."""
    biases = TAUS.to(full)[:, None] * full + beside
    own = objective.look(part, part.adjusted(biases[:, None, :]), often)
    parent = objective.look(part, part.adjusted(part.unchanged), often)
    fitness = objective.fitness(own, parent, several=part.several)
    return biases[int(fitness.argmax())]  # argmax returns the first of equals


def fit_temperature(problem: Problem, often: Tensor | None = None) -> float:
    """Return the logarithm of the scale, 1 / temperature, under which targets are most likely.

    The likelihood is concave in the scale: its maximum is found by halving an interval of the
    logarithm, exp(-5) to exp(5), in which it lies or whose end is taken.

    Args:
        problem: outputs, targets, weights.
        often: (n,) how often each example counts; None: once.

    Example:
        >>> outputs, targets = torch.tensor([4.0, 4.0, -4.0, -4.0]), torch.tensor([1, 0, 0, 0])
        >>> problem = Problem(outputs[:, None], targets, "binary")
        >>> scale = torch.tensor(fit_temperature(problem)).exp()
        >>> round((4 * scale).sigmoid().item(), 3)  # three of four are right
        0.75
    """
    weight = torch.ones(len(problem), dtype=torch.float64) if often is None else often.double()
    weight = weight if problem.weights is None else weight * problem.weights
    outputs = problem.outputs.double()
    if problem.kind == "classes":
        truth = torch.nn.functional.one_hot(problem.targets, problem.classes)
    else:
        truth = problem.targets.view(outputs.shape)

    def slope(log_scale: float) -> float:
        """Return the derivative of the mean log-likelihood with respect to the scale."""
        scaled = outputs * math.exp(log_scale)
        expected = scaled.softmax(1) if problem.kind == "classes" else scaled.sigmoid()
        return float((weight[:, None] * (truth - expected) * outputs).sum())

    low, high = -5.0, 5.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2


def subset(problem: Problem, rows: Tensor) -> Problem:
    """Return the problem of some examples."""
    return replace(
        problem,
        outputs=problem.outputs[rows],
        targets=problem.targets[rows],
        weights=None if problem.weights is None else problem.weights[rows],
        groups=None if problem.groups is None else problem.groups[rows],
    )
