"""The whole procedure, cross-fitted: what decides about an example has not seen it.

K folds. For the fold that judges, everything that depends on data is chosen on the other K - 1:
there, each fold in turn is decided by starts and searches that were fitted without it and without
the judging fold. So searches run on all examples (one set), on all but one fold (K sets) and on all
but two (K (K - 1) / 2 sets), and every choice reads what was searched on other examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from evostep.polishing.bootstrap import resample
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.polishing.search import Search, center_on_plateau, search
from evostep.polishing.starts import STARTS, fit_starts, subset

PULLS = (0.001, 0.01, 0.1)
_INNER_DRAWS = 200
STOPS = 8  # so many times of a search at which it may be stopped, beside its start


@dataclass(frozen=True)
class Choice:
    """What was chosen on some examples.

    Attributes:
        start: which of `STARTS`.
        pull: of the search; None where the start itself was better than every search.
        generations: after which the search stopped.
    """

    start: str
    pull: float | None
    generations: int

    def __str__(self) -> str:
        if self.pull is None:
            return self.start
        return f"evolution, {self.generations} generations, pull {self.pull:g}"


@dataclass(frozen=True)
class CrossFit:
    """What the procedure decided.

    Attributes:
        folds: (n,) who judges whom.
        out_of_fold: (3, n, C) biases under which each example is judged: of the checkpoint (zero),
            of the best simple start, of the whole procedure; none has seen the example.
        bias: (C,) of the procedure on all examples.
        start: (C,) of the best simple start on all examples.
        choice: what was chosen on all examples.
        start_choice: the best simple start on all examples.
        choices: what was chosen for each judging fold.
        evaluations: how many times a decision was scored.
    """

    folds: Tensor
    out_of_fold: Tensor
    bias: Tensor
    start: Tensor
    choice: Choice
    start_choice: Choice
    choices: tuple[Choice, ...]
    evaluations: int


def left_out(k: int) -> list[tuple[int, ...]]:
    """Return the sets of folds that searches do without: none, one, two.

    Example:
        >>> left_out(3)
        [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    """
    return [(), *((i,) for i in range(k)), *combinations(range(k), 2)]


def evaluations_a_generation(k: int, population: int) -> int:
    """Return how many decisions one generation of all searches scores."""
    return len(left_out(k)) * len(PULLS) * population


def cross_fit(
    problem: Problem,
    objective: Objective,
    folds: Tensor,
    settings: Search,
    *,
    prior: Tensor | None = None,
    run: Callable[..., Tensor] = search,
) -> CrossFit:
    """Run the procedure.

    Args:
        problem: outputs and targets.
        objective: what is maximised.
        folds: (n,) integers in [0, K).
        settings: of the searches.
        prior: class frequencies in training; None: those of the examples searched on.
        run: the search.
    """
    k = int(folds.max()) + 1
    sets = left_out(k)
    index = {gone: i for i, gone in enumerate(sets)}
    rows = torch.stack(
        [~torch.isin(folds, torch.tensor(gone, dtype=torch.long)) for gone in sets]
    ).double()
    starts = fit_starts(problem, objective, rows, prior)  # (3, R, C)
    path = run(problem, objective, rows, starts[-1], PULLS, settings)  # (G + 1, R, P, C)
    stops = sorted({round(i * settings.generations / STOPS) for i in range(1, STOPS + 1)})
    # candidates in the order of their simplicity: of equals the first is taken
    names = [Choice(name, None, 0) for name in STARTS]
    offered = [*starts]  # each (R, C)
    for stop in stops:
        for p in reversed(range(len(PULLS))):
            names.append(Choice(STARTS[-1], PULLS[p], stop))
            offered.append(path[stop, :, p])
    candidates = torch.stack(offered)  # (N, R, C)
    judged = _Judge(problem, objective, folds, candidates, index)
    out_of_fold = torch.zeros(3, len(problem), problem.biases, dtype=torch.float64)
    choices = []
    for fold in range(k):
        chosen, simple = judged.choose(fold)
        own, judged_here = index[fold,], folds == fold
        out_of_fold[1, judged_here] = candidates[simple, own]
        bias = _final(problem, candidates[chosen, own], rows[own], names[chosen])
        out_of_fold[2, judged_here] = bias
        choices.append(names[chosen])
    chosen, simple = judged.choose(None)
    return CrossFit(
        folds,
        out_of_fold,
        _final(problem, candidates[chosen, 0], rows[0], names[chosen]),
        candidates[simple, 0],
        names[chosen],
        names[simple],
        tuple(choices),
        settings.generations * evaluations_a_generation(k, settings.population),
    )


def _final(problem: Problem, bias: Tensor, rows: Tensor, choice: Choice) -> Tensor:
    """Return what a search found in the middle of its plateau; a start as it is."""
    return bias if choice.pull is None else center_on_plateau(problem, bias, rows)


def _gone(fold: int, without: int | None) -> tuple[int, ...]:
    return (fold,) if without is None else (min(fold, without), max(fold, without))


class _Judge:
    """Scores candidates on what a judging fold leaves, each example unseen by what decides it."""

    def __init__(
        self,
        problem: Problem,
        objective: Objective,
        folds: Tensor,
        candidates: Tensor,
        index: dict[tuple[int, ...], int],
    ) -> None:
        self._problem, self._objective = problem, objective
        self._folds, self._candidates, self._index = folds, candidates, index
        self._k = int(folds.max()) + 1

    def choose(self, without: int | None) -> tuple[int, int]:
        """Return the candidate chosen on all folds but `without`, and the best simple start.

        A search is chosen where it is better than the start by more than a standard error: of
        many candidates the best on few examples is so by luck.
        """
        inside = self.scores(without)
        chosen, simple = int(inside.argmax()), int(inside[: len(STARTS)].argmax())
        if chosen < len(STARTS):
            return chosen, simple
        rows = torch.arange(len(self._folds)) if without is None else self._folds != without
        bias = torch.zeros(2, len(self._folds), self._problem.biases, dtype=torch.float64)
        for fold in range(self._k):
            if fold != without:
                gone = _gone(fold, without)
                bias[:, self._folds == fold] = self._candidates[
                    [chosen, simple], self._index[gone]
                ][:, None]
        decisions = self._problem.decide(bias)[:, rows]
        drawn = resample(
            subset(self._problem, rows),
            decisions,
            lambda counts: self._objective.value(counts, several=self._problem.several),
            draws=_INNER_DRAWS,
        )
        error = (drawn[:, 0] - drawn[:, 1]).std()
        return (chosen if inside[chosen] - inside[simple] > error else simple), simple

    def scores(self, without: int | None) -> Tensor:
        """Return the fitness of each candidate, (N,), on all folds but `without`."""
        zero = torch.zeros(1, self._problem.biases)
        counts = torch.zeros(())
        parent = torch.zeros(())
        for fold in range(self._k):
            if fold == without:
                continue
            bias = self._candidates[:, self._index[_gone(fold, without)]]  # (N, C)
            rows = (self._folds == fold).double()
            counts = counts + self._problem.counts(self._problem.decide(bias[:, None]), rows)
            parent = parent + self._problem.counts(self._problem.decide(zero[:, None]), rows)
        return self._objective.fitness(counts, parent, several=self._problem.several)
