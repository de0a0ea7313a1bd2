"""What polishing was asked for, whatever the space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evostep.errors import InputError, unknown_name
from evostep.polishing.bootstrap import DRAWS
from evostep.polishing.budget import (
    Budget,
    Cost,
    evaluations_in,
    generations_for,
    parse_budget,
    timed,
)
from evostep.polishing.holdout import FOLDS, HOLDOUT, SHARE
from evostep.polishing.objective import Objective, parse_objective
from evostep.polishing.optimism import HALVES
from evostep.polishing.problem import Problem, make_problem
from evostep.polishing.procedure import PULLS, evaluations_a_generation
from evostep.polishing.search import Search, Watch, search
from evostep.polishing.spaces import AUTO, DECISION
from evostep.polishing.weights import SIGMAS, STOPS
from evostep.spaces.base import Space

GENERATIONS = 40
_PROBED = 3  # generations that are timed


@dataclass(frozen=True)
class Settings:
    """What polishing was asked for: see `polish`."""

    metric: str
    folds: int = 5
    budget: Budget = None
    population: int = 16
    prior: Any = None
    costs: Any = None
    weights: Any = None
    groups: Sequence[Any] | None = None
    draws: int = DRAWS
    seed: int = 0
    watch: Callable[[float, float], None] | None = None
    space: str | Space = DECISION
    confirm: Any = FOLDS
    share: float = SHARE
    generations: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.confirm, str) and self.confirm not in (FOLDS, HOLDOUT):
            raise unknown_name("confirm", self.confirm, (FOLDS, HOLDOUT))
        if self.population < 2 or self.population % 2:
            raise InputError(
                f"population must be an even number of at least 2, got {self.population}"
            )
        if self.draws < 100:
            raise InputError(f"draws must be at least 100, got {self.draws}")

    @property
    def objective(self) -> Objective:
        """The metric, read."""
        return parse_objective(self.metric, costs=self.costs)

    @property
    def once(self) -> bool:
        """Whether one choice is judged, on examples that are held out."""
        return self.confirm is not FOLDS and self.confirm != FOLDS

    @property
    def search(self) -> Search:
        """The settings of every search of a decision."""
        cost = Cost(0, evaluations_a_generation(self.folds, self.population, once=self.once))
        generations = GENERATIONS
        asked = parse_budget(self.budget)
        if asked is not None and self.space == DECISION:
            generations = generations_for(int(asked), cost)
        return Search(
            self.population,
            generations,
            seed=self.seed,
            watch=self._watched(round(generations * (cost.generation + self._of_halves))),
        )

    @property
    def _of_halves(self) -> int:
        """How many decisions a generation of the searches on halves scores."""
        return 0 if self.once else HALVES * (self.folds + 1) * self.population

    def decisions_in(self, seconds: float, problem: Problem) -> int:
        """Return how many decisions may be scored in a time, by one timed probe."""
        rows, start = torch.ones(1, len(problem)), torch.zeros(1, problem.biases)
        probe = Search(self.population, _PROBED, seed=self.seed)
        took = timed(lambda: search(problem, self.objective, rows, start, PULLS, probe))
        one = evaluations_a_generation(self.folds, self.population, once=self.once)
        # halves have half of the examples
        each = (one + self._of_halves / 2) / (_PROBED * self.population * len(PULLS))
        return evaluations_in(seconds, Cost(0, one), Cost(0.0, took * each))

    def _watched(self, most: int) -> Watch | None:
        """Return who counts the decisions that are scored, of so many at most."""
        watch, done = self.watch, 0
        if watch is None:
            return None

        def count(scored: int, gain: float) -> None:
            nonlocal done
            done += scored
            watch(min(1.0, done / most), gain)

        return count

    def problem(self, outputs: Any, targets: Any) -> Problem:
        """Return the problem that outputs pose."""
        return make_problem(outputs, targets, weights=self.weights, groups=self.groups)

    def others(self, outputs: Any, targets: Any, problem: Problem) -> Problem:
        """Return the problem of examples that are held out beside those of `problem`.

        Raises:
            InputError: weights or groups, which are of the others; outputs of another kind.
        """
        if self.weights is not None or self.groups is not None:
            raise InputError(
                "weights= and groups= name no examples of confirm=: leave these out, or take "
                "confirm='holdout'"
            )
        found = make_problem(outputs, targets)
        if (found.kind, found.biases) != (problem.kind, problem.biases):
            raise InputError(
                f"the examples of confirm= have {found.biases} outputs ({found.kind}), the others "
                f"{problem.biases} ({problem.kind}): give examples of the same kind"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return what is told of them."""
        decides = self.space in (DECISION, AUTO)
        return {
            "space": str(self.space),
            "confirm": self.confirm if isinstance(self.confirm, str) else "examples",
            **({"share": self.share} if self.confirm == HOLDOUT else {}),
            "folds": self.folds,
            "budget": self.budget,
            "generations": self.generations or self.search.generations,
            "population": self.population,
            **({"pulls": list(PULLS)} if decides else {}),
            **({"sigmas": list(SIGMAS), "stops": STOPS} if self.generations else {}),
            "draws": self.draws,
            "seed": self.seed,
        }
