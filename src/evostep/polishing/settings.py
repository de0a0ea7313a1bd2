"""What polishing was asked for, whatever the space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError, unknown_name
from evostep.polishing.bootstrap import draws_of
from evostep.polishing.budget import (
    Budget,
    Cost,
    evaluations_in,
    generations_for,
    parse_budget,
    timed,
)
from evostep.polishing.holdout import FOLDS, HOLDOUT, SHARE
from evostep.polishing.objective import Objective, make_objective
from evostep.polishing.optimism import halves_of
from evostep.polishing.problem import Problem, make_problem
from evostep.polishing.procedure import PULLS, evaluations_a_generation
from evostep.polishing.search import Search, Watch, search
from evostep.polishing.spaces import AUTO, DECISION
from evostep.polishing.weights import SIGMAS, STOPS
from evostep.spaces.base import Space

GENERATIONS = 40
_PROBED = 3  # generations that are timed
OUTPUT_GENERATIONS = 20  # each member is measured on its own


@dataclass(frozen=True)
class Settings:
    """What polishing was asked for: see `polish`."""

    metric: Any
    folds: int = 5
    budget: Budget = None
    population: int = 16
    prior: Any = None
    costs: Any = None
    weights: Any = None
    groups: Sequence[Any] | None = None
    draws: int | None = None
    seed: int = 0
    watch: Callable[[float, float], None] | None = None
    higher_is_better: bool | None = None
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
        if self.draws is not None and self.draws < 100:
            raise InputError(f"draws must be at least 100, got {self.draws}")

    @cached_property
    def objective(self) -> Objective:
        """The metric, read."""
        return make_objective(self.metric, costs=self.costs, higher_is_better=self.higher_is_better)

    @property
    def once(self) -> bool:
        """Whether one choice is judged, on examples that are held out."""
        return self.confirm is not FOLDS and self.confirm != FOLDS

    @property
    def search(self) -> Search:
        """The settings of every search of a decision."""
        cost = Cost(0, evaluations_a_generation(self.folds, self.population, once=self.once))
        generations = OUTPUT_GENERATIONS if self.objective.of_outputs else GENERATIONS
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
        return 0 if self.once else halves_of(self.objective) * (self.folds + 1) * self.population

    def decisions_in(self, seconds: float, problem: Problem) -> int:
        """Return how many decisions may be scored in a time, by one timed probe."""
        rows, start = torch.ones(1, len(problem)), problem.unchanged[None]
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

    def problem(
        self, outputs: Any, targets: Any, unit: Tensor | None = None, weights: Tensor | None = None
    ) -> Problem:
        """Return the problem that outputs pose.

        Args:
            outputs: (n, C).
            targets: (n,) or (n, L).
            unit: (n,) the example of each row, where some have several: these stay together, and
                weights and groups may be told of examples.
            weights: (n,) of the rows, where `weights` of the settings are not given.
        """
        weights = self.weights if self.weights is not None else weights
        groups: Any = self.groups
        if unit is not None:
            weights, groups = _of_rows(weights, unit), _of_rows(groups, unit)
            groups = unit if groups is None else groups
        return make_problem(outputs, targets, weights=weights, groups=groups)

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
            "draws": self.draws or draws_of(self.objective),
            "seed": self.seed,
        }


def _of_rows(told: Any, unit: Tensor) -> Any:
    """Return what is told of examples for each row; what is told of rows as it is."""
    if told is None or len(told) == len(unit):
        return told
    values = told.tolist() if hasattr(told, "tolist") else list(told)
    if len(values) <= int(unit.max()):
        return told  # the problem says what it lacks
    return [values[i] for i in unit.tolist()]
