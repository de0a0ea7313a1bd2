"""A strategy of one's own: the center goes to the mean of the best members.

    python examples/own_strategy.py

The cross-entropy method (Rubinstein 1999, https://doi.org/10.1023/A:1010091220143) with a fixed
spread. A strategy is a frozen dataclass that tells three things: how many members there are, what a
member is, and where the center goes. It is used as it stands; a row in `STRATEGIES` gives it the
tests that all strategies pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn

import evostep
from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.strategies.base import NoiseStrategy, State, Step


@dataclass(frozen=True)
class MeanOfBest(NoiseStrategy):
    """Move the center to the mean of the `elite` best members."""

    population: int = 16
    elite: int = 4

    @property
    def size(self) -> int:
        """The population."""
        return self.population

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return the center plus noise; a recipe, made again wherever it is needed."""
        return self.perturbed(genome, seed, generation, i)

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the mean of the best; stay where all failed."""
        sound = [i for i, score in enumerate(scores) if math.isfinite(score)]
        best = sorted(sound, key=lambda i: -scores[i])[: self.elite]
        if not best:
            return None, state
        members = [self.perturbed(genome, seed, generation, i) for i in best]
        mean = {
            name: torch.stack([member.tensor(name) for member in members]).mean(0)
            for name in genome.center
        }
        return Step(Tensors(mean)), state


def main() -> None:
    """Evolve the last layer of a network without a gradient, by it and by random search."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    for kind in (MeanOfBest, evostep.RandomSearch):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        search = evostep.Evolution(model, kind(sigma=0.3), space=evostep.Only("head"))
        fitness = evostep.Fitness(model, [(x[:600], y[:600])], "accuracy")
        search.evolve(fitness, generations=40)
        test = evostep.Fitness(model, [(x[600:], y[600:])], "accuracy")
        spent = sum(record.sample_forwards for record in search.history)
        print(f"{kind.__name__}: {fitness():.1%}, test {test():.1%}, {spent:,} sample-forwards")


if __name__ == "__main__":
    main()
