"""Controls of polishing: what else could find the biases of a decision, in the same space.

Coordinate search on the metric itself, and Adam on a soft form of it. Both begin where evolution
does (the tuned logit adjustment), may spend as many evaluations of the metric on a set of examples,
and hand out candidates among which is chosen as polishing chooses. `evolution` is polishing's own
search in the same harness: what `select` takes from it is what the procedure of `evostep.polish`
chooses on all examples, and proposes but where its verdict is for the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evostep.polishing.bootstrap import resample
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.polishing.procedure import INNER_DRAWS, PULLS, STOPS
from evostep.polishing.search import Scorer, Search, center_on_plateau, search, units
from evostep.polishing.starts import STARTS, fit_starts, subset
from evostep.scoring.confusion import CONFUSION_METRICS, recalls

EVALUATIONS = Search().generations * Search().population * len(PULLS)  # of a set of examples
OFFSETS = 2.0 ** torch.arange(-5, 3, dtype=torch.float64)  # in `units`, both ways
TEMPERATURES = (0.25, 0.5, 1.0, 2.0)  # that logits are divided by
STEP_COST = 3  # a gradient step in evaluations: a forward, and a backward for two
LEARNING_RATE = 0.05  # in `units`
SOFTNESS = 0.05  # of the soft minimum of recalls

Searcher = Callable[[Problem, Objective, Tensor, Tensor, int], Tensor]
"""(problem, objective, rows (n,), start (C,), seed) -> candidates (N, C), the simplest first."""


def evolution(
    problem: Problem, objective: Objective, rows: Tensor, start: Tensor, seed: int
) -> Tensor:
    """Return what polishing's search passes through, by when it stops, the strongest pull first."""
    settings = Search(seed=seed)
    path = search(problem, objective, rows[None], start[None], PULLS, settings)[:, 0]
    return path[_stops(settings.generations)].flip(1).flatten(0, 1)


def coordinate_search(
    problem: Problem, objective: Objective, rows: Tensor, start: Tensor, _: int
) -> Tensor:
    """Return what a search of one bias after the other passes through, at `STOPS` times.

    Each bias in turn is tried at 16 distances from where it stands, from a 32nd of its unit to four
    times it, both ways; the best is taken where it is better, of equals the nearest. It ends
    where a round changes nothing.

    Example:
        >>> from evostep.polishing.objective import parse_objective
        >>> from evostep.polishing.problem import make_problem
        >>> targets = torch.arange(90) % 3
        >>> outputs = torch.nn.functional.one_hot(targets, 3) + torch.tensor([3.0, 0.0, 2.0])
        >>> problem, accuracy = make_problem(outputs, targets), parse_objective("accuracy")
        >>> found = coordinate_search(problem, accuracy, torch.ones(90), torch.zeros(3), 0)[-1]
        >>> (problem.decide(found) == targets).all().item()
        True
    """
    scorer, unit = Scorer(problem, objective, rows), units(problem)
    tries = torch.stack([OFFSETS, -OFFSETS], 1).flatten()  # the nearest first
    bias, best = start.double().clone(), float(scorer.fitness(start[None].double()))
    path, idle, c = [bias.clone()], 0, 0
    while (len(path) * len(tries)) <= EVALUATIONS and idle < len(bias):
        members = bias.repeat(len(tries), 1)
        members[:, c] += tries * unit[c]
        fitness = scorer.fitness(members)
        top = int(fitness.argmax())
        better = float(fitness[top]) > best
        if better:
            bias, best = members[top], float(fitness[top])
        idle = 0 if better else idle + 1
        c = (c + 1) % len(bias)
        path.append(bias.clone())
    longest = EVALUATIONS // len(tries)
    return torch.stack([path[min(stop, len(path) - 1)] for stop in _stops(longest)])


def adam_on_soft_form(
    problem: Problem, objective: Objective, rows: Tensor, start: Tensor, _: int
) -> Tensor:
    """Return what Adam on `soft_value` passes through, by temperature, at `STOPS` times each.

    Evaluations are shared out among the temperatures.

    Example:
        >>> from evostep.polishing.objective import parse_objective
        >>> from evostep.polishing.problem import make_problem
        >>> targets = torch.arange(90) % 3
        >>> outputs = torch.nn.functional.one_hot(targets, 3) + torch.tensor([3.0, 0.0, 0.0])
        >>> problem, worst = make_problem(outputs, targets), parse_objective("worst-class-recall")
        >>> found = adam_on_soft_form(problem, worst, torch.ones(90), torch.zeros(3), 0)
        >>> found.shape, (problem.decide(found[7]) == targets).all().item()
        (torch.Size([32, 3]), True)
    """
    there = subset(problem, rows.nonzero().flatten())
    steps = EVALUATIONS // STEP_COST // len(TEMPERATURES)
    temperature = torch.tensor(TEMPERATURES, dtype=torch.float64)[:, None]  # (T, 1)
    likelihood = ((there.outputs.double() + start) / temperature[:, None]).softmax(-1)  # (T, n, C)
    by_class = [likelihood[:, there.targets == c] for c in range(problem.classes)]
    moved = torch.zeros(len(temperature), len(start), dtype=torch.float64, requires_grad=True)
    optimizer, unit = torch.optim.Adam([moved], lr=LEARNING_RATE), units(problem)
    path = [start + unit * moved.detach()]
    for _ in range(steps):  # of all temperatures at once: Adam moves each number by itself
        optimizer.zero_grad()
        counts = soft_counts(by_class, unit * moved / temperature)
        (-soft_value(objective, counts).sum()).backward()
        optimizer.step()
        path.append(start + unit * moved.detach())
    return torch.stack(path)[_stops(steps)].transpose(0, 1).flatten(0, 1)


def soft_counts(by_class: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Return the sums of softmax(log likelihood + bias) by true class, (..., true, decided).

    Args:
        by_class: of each class the likelihoods of its examples, (..., n, C), positive.
        bias: (..., C).

    Example:
        >>> z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> bias = torch.tensor([0.0, 1.0, -2.0]).double()
        >>> found = soft_counts([z[:15].exp(), z[15:].exp()], bias)
        >>> slow = torch.stack([(one + bias).softmax(1).sum(0) for one in (z[:15], z[15:])])
        >>> torch.allclose(found, slow)
        True
    """
    weight = bias.exp()[..., None]  # (..., C, 1)
    sums = [(part @ weight).reciprocal().mT @ part for part in by_class]  # (..., 1, C)
    return torch.cat(sums, -2) * weight.mT


def soft_value(objective: Objective, counts: Tensor) -> Tensor:
    """Return a soft form of what is maximised, of counts of probabilities.

    Metrics are functions of counts already; the smallest recall becomes a soft minimum, so that
    more classes than one have a gradient.

    Example:
        >>> from evostep.polishing.objective import parse_objective
        >>> counts = torch.tensor([[8.0, 2.0], [4.0, 6.0]])
        >>> round(soft_value(parse_objective("worst-class-recall"), counts).item(), 3)
        0.599
        >>> round(soft_value(parse_objective("accuracy"), counts).item(), 3)
        0.7
    """
    value = counts.new_zeros(counts.shape[:-2])
    for factor, metric in objective.terms:
        if metric is CONFUSION_METRICS["worst-class-recall"]:
            value = value - factor * SOFTNESS * (-recalls(counts) / SOFTNESS).logsumexp(-1)
        else:
            value = value + factor * metric(counts, several=False)
    return value if objective.higher_is_better else -value


def _stops(longest: int) -> list[int]:
    return sorted({round(i * longest / STOPS) for i in range(1, STOPS + 1)})


@dataclass(frozen=True)
class Fitted:
    """Candidates of one search, and how each decides about examples that it has not seen.

    Attributes:
        biases: (N, C), fitted on all examples: the simple starts, then the search's.
        decisions: (N, n), of the same candidates fitted without the example's fold.
    """

    biases: Tensor
    decisions: Tensor


def fit(
    problem: Problem, objective: Objective, parts: Tensor, searcher: Searcher, seed: int
) -> Fitted:
    """Fit the candidates of a search on all examples, and on all but each fold."""

    def candidates(rows: Tensor) -> Tensor:
        starts = fit_starts(problem, objective, rows[None].double())[:, 0]
        return torch.cat([starts, searcher(problem, objective, rows.double(), starts[-1], seed)])

    biases = candidates(torch.ones(len(problem)))
    decisions = torch.empty(len(biases), len(problem), dtype=torch.long)
    for fold in parts.unique().tolist():
        here = parts == fold
        judged = subset(problem, here)
        decisions[:, here] = torch.stack([judged.decide(bias) for bias in candidates(~here)])
    return Fitted(biases, decisions)


def select(problem: Problem, objective: Objective, fitted: Fitted, *, careful: bool) -> Tensor:
    """Choose by the folds, and return the biases (C,), those of a search on their plateau's middle.

    Args:
        problem: of the examples.
        objective: what is maximised.
        fitted: the candidates.
        careful: take a search only where it is better than the best simple start by more than a
            standard error, as polishing does; else the best.
    """
    fitness = objective.fitness(
        problem.counts(fitted.decisions),
        torch.zeros(problem.classes, problem.classes),
        several=False,
    )
    best, simple = int(fitness.argmax()), int(fitness[: len(STARTS)].argmax())
    if careful and best >= len(STARTS):
        drawn = resample(
            problem,
            fitted.decisions[[best, simple]],
            lambda counts: objective.value(counts, several=False),
            draws=INNER_DRAWS,
        )
        error = (drawn[:, 0] - drawn[:, 1]).std()
        best = best if fitness[best] - fitness[simple] > error else simple
    bias = fitted.biases[best]
    return bias if best < len(STARTS) else center_on_plateau(problem, bias)
