"""Evolution of a finished network's weights on the metric, on some of the examples.

Strategy: CMA-ES where few weights move (and the package `cma` is there), else SNES; both propose
the mean of their distribution, for one member's score on few examples is mostly luck. Every center
is followed, unjudged; which of them to take is the cross-fitting's choice.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evostep.acceptance.base import Always
from evostep.evolution import Evolution
from evostep.genome.slots import slots_of_module
from evostep.interrupts import Undoing
from evostep.noise import derive_seed
from evostep.polishing.budget import Cost
from evostep.polishing.network import Given, rows_of
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.polishing.starts import subset
from evostep.record import Record
from evostep.scoring.batches import Forward
from evostep.scoring.fitness import Fitness
from evostep.scoring.isolation import ModuleState, preserved_rng
from evostep.spaces.base import Space
from evostep.strategies.base import Strategy
from evostep.strategies.cmaes import CMAES
from evostep.strategies.snes import SNES

SIGMAS = (0.03, 0.1)  # of each tensor's root mean square
STOPS = 4  # so many times of an evolution at which it may be stopped
FEW = 100  # weights whose full covariance is learned
_FLAT = 8  # generations without a difference between members, after which nothing will come

Weights = dict[str, Tensor]
Told = Callable[[int, float], None]
"""Called after each generation with the sample-forwards it took, and its members' mean gain."""


@dataclass(frozen=True)
class Stop:
    """Where an evolution may be stopped.

    Attributes:
        sigma: with which it began.
        generations: after which it stops.
    """

    sigma: float
    generations: int


def stops_of(generations: int) -> list[Stop]:
    """Return all stops, in the order of their simplicity: few steps first, small before large.

    Example:
        >>> [stop.generations for stop in stops_of(8)]
        [2, 2, 4, 4, 6, 6, 8, 8]
    """
    times = sorted({max(1, round(i * generations / STOPS)) for i in range(1, STOPS + 1)})
    return [Stop(sigma, time) for time in times for sigma in SIGMAS]


def generations_of(each: int) -> int:
    """Return how many generations one `Network.evolve` has."""
    return len(SIGMAS) * each


def _unscored(_: Tensor) -> float:
    """Score outputs that are looked at, and not selected by."""
    return 0.0


class Network:
    """A network whose weights evolve in one space, on the metric.

    It stands as it was when `evolve` or `outputs` returns.

    Args:
        model: the network.
        examples: (batches, what the checkpoint gives for them, the problem that this poses); the
            first are evolved on, what comes after is held out.
        forward: as `Fitness` takes it.
        space: which weights may move.
        objective: what is maximised.
        population: members of a generation.
        seed: of the noise, the same whatever examples are left out.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[tuple[Iterable[Any], Given, Problem]],
        forward: Forward | None,
        space: Space,
        objective: Objective,
        population: int,
        seed: int,
    ) -> None:
        self._model, self._space, self._objective = model, space, objective
        self._population, self._seed = population, seed
        slots = slots_of_module(model)
        self.live = {name: slots.live[name] for name in space.touched(slots)}
        self.before = {name: tensor.detach().clone() for name, tensor in self.live.items()}
        self._score: Callable[[Tensor], float] = _unscored

        def measure(given: Given) -> Callable[[Any, Any], float | Tensor]:
            form = given.form
            assert form is not None, "a network gave it"

            def metric(outputs: Any, targets: Any) -> float | Tensor:
                value = self._score(rows_of(outputs, targets, form))
                # where batches have weights, one number for all is the same for each
                return value if given.weights is None else torch.full((given.examples,), value)

            return metric

        self._all = [
            (
                Fitness(model, some, measure(given), forward=forward, higher_is_better=True),
                given,
                problem,
            )
            for some, given, problem in examples
        ]
        self._fitness, given, self._problem = self._all[0]
        self.examples = given.examples

    def forwards(self, *, everything: bool) -> int:
        """Return the sample-forwards of `outputs`."""
        return sum(given.examples for _, given, _ in self._all) if everything else self.examples

    @property
    def size(self) -> int:
        """How many weights move."""
        return sum(tensor.numel() for tensor in self.live.values())

    def strategy(self, sigma: float) -> Strategy:
        """Return who draws members and proposes the center."""
        if self.size <= FEW and importlib.util.find_spec("cma") is not None:
            return CMAES(sigma=sigma, population=self._population)
        return SNES(sigma=sigma, population=self._population)

    @property
    def cost(self) -> Cost:
        """Sample-forwards of `evolve` and of the outputs of all that it finds."""
        each = len(SIGMAS) * (self._population + 1) * self.examples
        return Cost(len(SIGMAS) * STOPS * self.examples, each)

    def evolve(
        self, rows: Tensor, start: Tensor, generations: int, told: Told | None = None
    ) -> tuple[list[Weights], int]:
        """Evolve from the checkpoint on, under the decision of a start, once for each sigma.

        Args:
            rows: (n,) bool, of what is known; what is beside `examples` is not read.
            start: (P,) the decision.
            generations: of each evolution.
            told: hears of each generation.

        Returns:
            The weights at each of `stops_of`, and the sample-forwards taken.
        """
        problem, objective = self._problem, self._objective
        there = rows[: len(problem)].nonzero().flatten()
        part = subset(problem, there)
        parent = objective.look(part, part.outputs)

        def score(outputs: Tensor) -> float:
            own = objective.look(part, part.of(outputs[there]).adjusted(start))
            return float(objective.fitness(own, parent, several=part.several))

        self._score = score
        at_start = score(problem.outputs)
        found: dict[Stop, Weights] = {}
        spent = 0
        for sigma in SIGMAS:
            times = {stop.generations for stop in stops_of(generations) if stop.sigma == sigma}
            taken, forwards = self._once(sigma, generations, times, at_start, told)
            found |= {Stop(sigma, time): weights for time, weights in taken.items()}
            spent += forwards
        return [found[stop] for stop in stops_of(generations)], spent

    def _once(
        self, sigma: float, generations: int, times: set[int], start: float, told: Told | None
    ) -> tuple[dict[int, Weights], int]:
        taken: dict[int, Weights] = {}
        flat = 0

        def look(record: Record) -> bool:
            nonlocal flat
            done = record.generation + 1
            values = torch.tensor(record.scores, dtype=torch.float64)
            values = values[values.isfinite()]
            if told is not None:
                gain = float(values.mean()) - start if len(values) else 0.0
                told(record.sample_forwards, gain)
            if done in times:
                taken[done] = self._copy()
            flat = 0 if len(values) and float(values.max()) > float(values.min()) else flat + 1
            return flat >= _FLAT

        evolution = Evolution(
            self._model,
            self.strategy(sigma),
            space=self._space,
            accept=Always(),
            seed=derive_seed(self._seed, "weights", str(sigma)),
        )
        with Undoing(partial(self.write, self.before)):
            with warnings.catch_warnings():
                # on few rare examples members often score alike; that ends the evolution, no more
                warnings.filterwarnings("ignore", message=r"all \d+ members score")
                records = evolution.evolve(self._fitness, generations, on_generation=look)
            for time in times - taken.keys():  # it ended early
                taken[time] = self._copy()
        return taken, sum(record.sample_forwards for record in records)

    def _copy(self) -> Weights:
        return {name: tensor.detach().clone() for name, tensor in self.live.items()}

    @torch.no_grad()
    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the network."""
        for name, tensor in self.live.items():
            tensor.copy_(weights[name])

    def outputs(self, weights: Mapping[str, Tensor], *, everything: bool = False) -> Tensor:
        """Return the network's outputs with these weights, (n, C); NaN where it fails.

        Args:
            weights: to be put in, and taken out again.
            everything: for the examples held out beside the others, too.
        """
        seen: list[Tensor] = []

        def look(outputs: Tensor) -> float:
            seen.append(outputs)
            return 0.0

        self._score = look
        wanted = self._all if everything else self._all[:1]
        found = []
        state = ModuleState(self._model, {id(tensor) for tensor in self.live.values()})
        with preserved_rng(), Undoing(state.restore), Undoing(partial(self.write, self.before)):
            self.write(weights)
            for fitness, _, problem in wanted:
                failed = fitness.score(fitness.examples()).failed
                nothing = torch.full_like(problem.outputs, torch.nan)
                found.append(nothing if failed else seen[-1].to(problem.outputs))
        return torch.cat(found)
