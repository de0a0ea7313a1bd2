"""The whole procedure, cross-fitted: what decides about an example has not seen it.

K folds. For the fold that judges, everything that depends on data is chosen on the other K - 1:
there, each fold in turn is decided by starts and searches that were fitted without it and without
the judging fold. So searches run on all examples (one set), on all but one fold (K sets) and on all
but two (K (K - 1) / 2 sets), and every choice reads what was searched on other examples. Where the
network itself was trained on the examples, each judging fold has outputs of its own, of networks
that have seen neither it nor the example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from evostep.polishing.bootstrap import draw_values
from evostep.polishing.crossfit import CrossFit
from evostep.polishing.objective import Objective
from evostep.polishing.optimism import optimism
from evostep.polishing.problem import Problem
from evostep.polishing.search import Search, center_on_plateau, search
from evostep.polishing.starts import fit_starts, starts_of, subset

PULLS = (0.001, 0.01, 0.1)
INNER_DRAWS = 200
STOPS = 8  # so many times of a search at which it may be stopped, beside its start


@dataclass(frozen=True)
class Choice:
    """What was chosen on some examples.

    Attributes:
        start: which of `starts_of`.
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


def left_out(k: int) -> list[tuple[int, ...]]:
    """Return the sets of folds that searches do without: none, one, two.

    Example:
        >>> left_out(3)
        [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    """
    return [(), *((i,) for i in range(k)), *combinations(range(k), 2)]


def count_sets(k: int, *, once: bool = False) -> int:
    """Return how many sets of examples are searched on; `once`: to be judged on others.

    Example:
        >>> count_sets(3), count_sets(3, once=True)
        (7, 4)
    """
    return 1 + k if once else len(left_out(k))


def evaluations_a_generation(k: int, population: int, *, once: bool = False) -> int:
    """Return how many decisions one generation of all searches scores."""
    return count_sets(k, once=once) * len(PULLS) * population


def without(folds: Tensor, gone: tuple[int, ...]) -> Tensor:
    """Return which examples are in no fold of `gone`, and not held out (in fold -1)."""
    return ~torch.isin(folds, torch.tensor((*gone, -1), dtype=torch.long))


def cross_fit(
    problem: Problem,
    objective: Objective,
    folds: Tensor,
    settings: Search,
    *,
    prior: Tensor | None = None,
    problem_of: Callable[[int | None], Problem] | None = None,
) -> CrossFit:
    """Run the procedure.

    Args:
        problem: outputs and targets, each example's outputs by a network that has not seen it.
        objective: what is maximised.
        folds: (n,) integers in [0, K).
        settings: of the searches.
        prior: class frequencies in training; None: those of the examples searched on.
        problem_of: the judging fold (None: all examples decide) -> the problem with the outputs
            that its choice may read; None: the same for all.
    """
    k = int(folds.max()) + 1
    fitter = Fitter(objective, folds, settings, prior, starts_of(problem))
    biases = problem.unchanged.repeat(3, len(problem), 1)
    choices = []
    for fold in range(k):
        chosen = fitter.choose(problem if problem_of is None else problem_of(fold), fold)
        biases[1, folds == fold] = chosen.start
        biases[2, folds == fold] = chosen.bias
        choices.append(chosen.choice)
    final = fitter.choose(problem if problem_of is None else problem_of(None), None)
    overstated = optimism(
        problem,
        objective,
        k,
        final.start_choice.start,
        final.choice.pull,
        replace(settings, generations=final.choice.generations),
        prior=prior,
    )
    both = torch.stack([final.start, final.bias])
    return CrossFit(
        outputs=problem.adjusted(biases),
        final=problem.adjusted(both[:, None]),
        start=str(final.start_choice),
        chosen=str(final.choice),
        chosen_by_fold=tuple(map(str, choices)),
        evaluations=fitter.evaluations,
        biases=both,
        overstated=overstated,
    )


def fit_once(
    problem: Problem,
    objective: Objective,
    folds: Tensor,
    settings: Search,
    *,
    prior: Tensor | None = None,
) -> CrossFit:
    """Run the procedure once, to be judged on examples that are held out.

    Args:
        problem: outputs and targets.
        objective: what is maximised.
        folds: (n,) integers in [0, K), by which starts and searches are chosen; -1: held out.
        settings: of the searches.
        prior: see `cross_fit`.
    """
    fitter = Fitter(objective, folds, settings, prior, starts_of(problem))
    found = fitter.choose(problem, None)
    both = torch.stack([found.start, found.bias])
    judged = subset(problem, folds < 0)
    final = judged.adjusted(both[:, None])
    return CrossFit(
        outputs=torch.cat([judged.outputs[None], final]),
        final=final,
        start=str(found.start_choice),
        chosen=str(found.choice),
        chosen_by_fold=(),
        evaluations=fitter.evaluations,
        biases=both,
    )


@dataclass(frozen=True)
class _Chosen:
    """What was chosen without the judging fold."""

    bias: Tensor
    start: Tensor
    choice: Choice
    start_choice: Choice


class Fitter:
    """Fits candidates on sets of examples, each set once, and chooses among them."""

    def __init__(
        self,
        objective: Objective,
        folds: Tensor,
        settings: Search,
        prior: Tensor | None,
        starts: tuple[str, ...],
    ) -> None:
        self._objective, self._folds = objective, folds
        self._settings, self._prior, self._simple = settings, prior, len(starts)
        self._stops = sorted({round(i * settings.generations / STOPS) for i in range(1, STOPS + 1)})
        # in the order of their simplicity: of equals the first is taken
        self.choices = [Choice(name, None, 0) for name in starts]
        self.choices += [
            Choice(starts[-1], pull, stop) for stop in self._stops for pull in reversed(PULLS)
        ]
        self._fitted: dict[tuple[Problem, tuple[int, ...]], Tensor] = {}
        self.evaluations = 0

    def candidates(self, problem: Problem, gone: tuple[int, ...]) -> Tensor:
        """Return all candidates, (N, P), fitted without the folds `gone`."""
        key = problem, gone
        if key not in self._fitted:
            settings = self._settings
            row = self._without(gone).double()[None]
            starts = fit_starts(problem, self._objective, row, self._prior)  # (S, 1, P)
            path = search(problem, self._objective, row, starts[-1], PULLS, settings)[:, 0]
            self.evaluations += settings.generations * len(PULLS) * settings.population
            found = path[self._stops].flip(1).flatten(0, 1)  # by stop, the strongest pull first
            self._fitted[key] = torch.cat([starts[:, 0], found])
        return self._fitted[key]

    def _without(self, gone: tuple[int, ...]) -> Tensor:
        return without(self._folds, gone)

    def choose(self, problem: Problem, judging: int | None) -> _Chosen:
        """Choose on all folds but `judging`."""
        own = () if judging is None else (judging,)
        rows = self._without(own)
        part, folds = subset(problem, rows), self._folds[rows]
        there = folds.unique()
        given = torch.stack(  # (K', N, P), for each fold by what has not seen it
            [self.candidates(problem, tuple(sorted((*own, fold)))) for fold in there.tolist()]
        )
        place = torch.searchsorted(there, folds)
        objective = self._objective
        best, simple = pick(
            part,
            objective,
            lambda candidate: part.adjusted(given[place, candidate]),
            len(self.choices),
            self._simple,
        )
        candidates, choice = self.candidates(problem, own), self.choices[best]
        bias = candidates[best]
        if choice.pull is not None and not objective.of_outputs:  # in the middle of its plateau
            bias = center_on_plateau(problem, bias, rows)
        return _Chosen(bias, candidates[simple], choice, self.choices[simple])


def pick(
    part: Problem,
    objective: Objective,
    outputs_of: Callable[[int], Tensor],
    candidates: int,
    simple: int,
) -> tuple[int, int]:
    """Return which candidate is chosen, and which simple start.

    What was evolved is chosen where it is better than the start by more than a standard error: of
    many candidates the best on few examples is so by luck.

    Args:
        part: the examples to choose on.
        objective: what is maximised.
        outputs_of: candidate -> its outputs for the examples, (n, C).
        candidates: how many there are; of equals the first is taken.
        simple: how many of them, the first, are simple starts.
    """
    several = part.several
    parent = objective.look(part, part.outputs)
    inside = torch.stack(
        [
            objective.fitness(objective.look(part, outputs_of(c)), parent, several=several)
            for c in range(candidates)
        ]
    ).nan_to_num(nan=-torch.inf)
    best, start = int(inside.argmax()), int(inside[:simple].argmax())
    if best >= simple:
        both = torch.stack([outputs_of(best), outputs_of(start)])
        drawn = draw_values(part, objective, both, draws=INNER_DRAWS)
        error = (drawn[:, 0] - drawn[:, 1]).std()
        best = best if inside[best] - inside[start] > error else start
    return best, start
