"""What polishing was asked for, whatever the space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evostep.errors import InputError
from evostep.polishing.bootstrap import DRAWS
from evostep.polishing.objective import Objective, parse_objective
from evostep.polishing.optimism import HALVES
from evostep.polishing.problem import Problem, make_problem
from evostep.polishing.procedure import PULLS, evaluations_a_generation
from evostep.polishing.search import Search, Watch

GENERATIONS = 40


@dataclass(frozen=True)
class Settings:
    """What polishing was asked for: see `polish`."""

    metric: str
    folds: int = 5
    budget: int | None = None
    population: int = 16
    prior: Any = None
    costs: Any = None
    weights: Any = None
    groups: Sequence[Any] | None = None
    draws: int = DRAWS
    seed: int = 0
    watch: Callable[[float, float], None] | None = None

    def __post_init__(self) -> None:
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
    def search(self) -> Search:
        """The settings of every search."""
        one = evaluations_a_generation(self.folds, self.population)
        generations = GENERATIONS
        if self.budget is not None:
            generations = self.budget // one
        if not generations:
            raise InputError(
                f"budget must be at least {one}, one generation of all searches, got {self.budget}"
            )
        watch = self._watched(generations * (one + HALVES * (self.folds + 1) * self.population))
        return Search(self.population, generations, seed=self.seed, watch=watch)

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

    def as_dict(self) -> dict[str, Any]:
        """Return what is told of them."""
        return {
            "space": "decision",
            "folds": self.folds,
            "generations": self.search.generations,
            "population": self.population,
            "pulls": list(PULLS),
            "draws": self.draws,
            "seed": self.seed,
        }
