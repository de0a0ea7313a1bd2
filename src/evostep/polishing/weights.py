"""Evolution of a finished network's weights on the metric, on some of the examples.

Strategy: CMA-ES where few weights move (and the package `cma` is there), else SNES; both propose
the mean of their distribution, for one member's score on few examples is mostly luck. Every center
is followed, unjudged; which of them to take is the cross-fitting's choice.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evostep.acceptance.base import Always
from evostep.evolution import Evolution
from evostep.genome.slots import slots_of_module
from evostep.noise import derive_seed
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.record import Record
from evostep.scoring.batches import Forward
from evostep.scoring.fitness import Fitness
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


class Weighted:
    """The weights of a network in one space, and their evolution on the metric.

    Args:
        model: the network; it stands as it was when `evolve` or `outputs` returns.
        examples: as `Fitness` takes them.
        forward: as `Fitness` takes it.
        space: which weights may move.
        problem: the checkpoint's outputs for the examples, and what is true.
        objective: what is maximised.
        population: members of a generation.
        seed: of the noise, the same whatever examples are left out.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Iterable[Any],
        forward: Forward | None,
        space: Space,
        problem: Problem,
        objective: Objective,
        population: int,
        seed: int,
    ) -> None:
        self._model, self._space = model, space
        self._problem, self._objective = problem, objective
        self._population, self._seed = population, seed
        slots = slots_of_module(model)
        self.live = {name: slots.live[name] for name in space.touched(slots)}
        self._before = {name: tensor.detach().clone() for name, tensor in self.live.items()}
        self._score: Callable[[Any], float] = lambda outputs: 0.0
        self._fitness = Fitness(
            model,
            examples,
            lambda outputs, targets: self._score(outputs),
            forward=forward,
            higher_is_better=True,
        )

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
    def generation_cost(self) -> int:
        """Sample-forwards of one generation: its members and the center."""
        return (self._population + 1) * self.examples

    @property
    def examples(self) -> int:
        """Sample-forwards of scoring once."""
        return len(self._fitness.examples())

    def evolve(
        self, rows: Tensor, bias: Tensor, generations: int, told: Told | None = None
    ) -> tuple[list[Weights], int]:
        """Evolve from the checkpoint on, with a bias added to the outputs, once for each sigma.

        Args:
            rows: (n,) how often each example counts; of those with 0 nothing is known.
            bias: (C,) of the start.
            generations: of each evolution.
            told: hears of each generation.

        Returns:
            The weights at each of `stops_of`, and the sample-forwards taken.
        """
        problem, objective = self._problem, self._objective
        zero = torch.zeros(problem.biases)
        parent = problem.counts(problem.decide(zero), rows)

        def score(outputs: Any) -> float:
            own = problem.of(outputs)
            counts = own.counts(own.decide(bias), rows)
            return float(objective.fitness(counts, parent, several=problem.several))

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
        try:
            with warnings.catch_warnings():
                # on few rare examples members often score alike; that ends the evolution, no more
                warnings.filterwarnings("ignore", message=r"all \d+ members score")
                records = evolution.evolve(self._fitness, generations, on_generation=look)
            for time in times - taken.keys():  # it ended early
                taken[time] = self._copy()
        finally:
            self.write(self._before)
        return taken, sum(record.sample_forwards for record in records)

    def _copy(self) -> Weights:
        return {name: tensor.detach().clone() for name, tensor in self.live.items()}

    @torch.no_grad()
    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the network."""
        for name, tensor in self.live.items():
            tensor.copy_(weights[name])

    def outputs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the network's outputs for all examples with these weights, (n, C)."""
        self._score = lambda outputs: 0.0
        try:
            self.write(weights)
            scores = self._fitness.score(self._fitness.examples(), keep_outputs=True)
        finally:
            self.write(self._before)
        if scores.failed:
            return torch.full_like(self._problem.outputs, torch.nan)
        return self._problem.of(scores.outputs).outputs

    def changed(self, weights: Weights) -> Moved:
        """Return the change to these weights."""
        return Moved(self.live, self._before, weights)


class Moved:
    """Evolved weights in a network, which can be taken out again.

    Args:
        live: the network's tensors.
        before: what they were.
        after: what they become.
    """

    def __init__(
        self, live: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        self._live, self._before, self._after = live, before, after
        self.applied = False

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(weights[name])

    def apply(self) -> None:
        """Put the evolved weights in; nothing where they are in already."""
        if not self.applied:
            self._write(self._after)
        self.applied = True

    def revert(self) -> None:
        """Put the weights back, bit for bit."""
        if self.applied:
            self._write(self._before)
        self.applied = False
