"""evostep as its users call it, with dense noise and the engine that it chooses itself."""

from __future__ import annotations

from collections.abc import Callable

import evostep
from evostep.noise import Noise
from peer_adapters.task import Task

PACKAGES = ("evostep", "torch")
CALLED = "Evolution(model, OpenAIES(sigma, lr, population), accept=Always()).evolve(fitness)"
NOTES = "sigma and lr are relative to each tensor's root mean square"
SCORES_PARENT = True


def prepare(task: Task, noise: Noise = "normal", engine: str = "auto") -> Callable[[], None]:
    fitness = evostep.Fitness(task.model, task.batches, "neg-loss")
    strategy = evostep.OpenAIES(
        sigma=task.sigma, lr=task.lr, population=task.population, noise=noise
    )
    evolution = evostep.Evolution(task.model, strategy, accept=evostep.Always(), engine=engine)
    examples = sum(len(targets) for _, targets in task.batches)

    def generation() -> None:
        (record,) = evolution.evolve(fitness, generations=1)
        assert record.sample_forwards == (task.population + 1) * examples
        assert record.accepted, "the center stayed where it was: no step was timed"

    return generation
