"""Simple starts: what is best known without a search.

Logit adjustment subtracts tau times the logarithm of the class frequencies from the logits: Menon
et al. 2021, "Long-tail learning via logit adjustment", https://arxiv.org/abs/2007.07314, section
4.1, post hoc. tau = 1 is right for the balanced error; for other metrics tau is tuned. A
temperature times tau is one number where only decisions count, so tau alone is tuned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem

STARTS = ("checkpoint", "logit adjustment", "tuned logit adjustment")
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


def fit_starts(
    problem: Problem, objective: Objective, rows: Tensor, prior: Tensor | None = None
) -> Tensor:
    """Return the biases of each of `STARTS`, fitted on each set of examples: (3, R, C).

    Of several tau with the same score the smallest is taken.
    """
    full = adjustment(problem, rows, prior)  # (R, C)
    tuned = []
    for r, row in enumerate(rows):
        there = row.nonzero().flatten()
        part = subset(problem, there)
        biases = TAUS.to(full)[:, None] * full[r]
        counts = part.counts(part.decide(biases[:, None, :]), row[there])
        parent = part.counts(part.decide(torch.zeros_like(full[r])), row[there])
        fitness = objective.fitness(counts, parent, several=problem.several)
        tuned.append(biases[int(fitness.argmax())])  # argmax returns the first of equals
    return torch.stack([torch.zeros_like(full), full, torch.stack(tuned)])


def subset(problem: Problem, rows: Tensor) -> Problem:
    """Return the problem of some examples."""
    return Problem(
        problem.outputs[rows],
        problem.targets[rows],
        problem.kind,
        None if problem.weights is None else problem.weights[rows],
        None if problem.groups is None else problem.groups[rows],
    )
