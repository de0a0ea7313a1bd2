"""Evolutionary SGD: a population of models that train, breed and compete (arXiv 1810.06773).

Every individual starts at the trunk's weights. Half of them are SGD, half Adam, with learning rates
drawn within a factor of 3 around the arm's own (a tenth of it for Adam).
"""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import torch
from torch import nn

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.evaluation import make_fitness
from evostep.lab.arms.procedures.base import Learner, Procedure, descent_cost
from evostep.lab.arms.recording import note_epoch, note_generation, warn_of_failures
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.arms.training import PER_GRADIENT_EXAMPLE, train_epoch
from evostep.lab.data.parts import Sizes
from evostep.noise import derive_seed
from evostep.population.esgd import ESGD
from evostep.population.species import Species


class Population(Procedure):
    """ESGD: in each epoch every individual trains, then all breed for some rounds.

    An epoch of a population of mu costs as much as mu epochs, so that it has as many fewer.
    """

    evolves: ClassVar[bool] = True
    populates: ClassVar[bool] = True

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(seed_run, arm, trunk)
        lr, population, parts = arm.training.lr, arm.population, seed_run.parts
        species = (
            Species(torch.optim.SGD, lr=(lr / 3, lr * 3, "log"), momentum=(0.0, 0.95)),
            Species(torch.optim.Adam, lr=(lr / 30, lr * 0.3, "log")),
        )
        learners = [self.learner]
        for _ in range(1, population.individuals):
            learners.append(Learner(seed_run, arm.training))
            learners[-1].load(trunk)
        self.models = [learner.model for learner in learners]
        self.esgd = ESGD(
            [(model, species[i % 2]) for i, model in enumerate(self.models)],
            make_fitness(self.models[0], parts.fitness, parts.data, seed_run.options),
            offspring=population.offspring,
            parents=population.parents,
            elite=population.elite,
            sigma=population.sigma,
            seed=seed_run.seed,
        )

    @classmethod
    def epoch_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what an epoch of all individuals takes, each scored before and after it."""
        return arm.population.individuals * (descent_cost(arm.training, sizes) + 2 * sizes.fitness)

    @classmethod
    def phase_cost(cls, arm: Arm, sizes: Sizes, generations: int) -> int:
        """Return what a phase takes: everybody scored once, and the offspring of each round."""
        scored = arm.population.individuals + generations * arm.population.offspring
        return scored * sizes.fitness if generations else 0

    @classmethod
    def excess(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what the epoch of all individuals may spend beyond the budget."""
        return cls.epoch_cost(arm, sizes)

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Let every individual train for an epoch, then breed."""
        seed_run, label, esgd, epoch = self.seed_run, self.arm.label, self.esgd, counters.epoch
        began, spent = time.perf_counter(), esgd.sample_forwards
        measured: list[dict[str, float]] = []

        def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
            running, examples = self._train(model, optimizer, epoch)
            measured.append(running)
            return examples

        esgd.descend(train, max_forwards=counters.left(budget))
        counters.seconds += time.perf_counter() - began
        counters.forwards += esgd.sample_forwards - spent
        # an individual that diverged loses every competition; the run diverges where all do
        learning = [one for one in measured if math.isfinite(one["loss"])] or measured
        running = {key: sum(one[key] for one in learning) / len(learning) for key in learning[0]}
        note_epoch(seed_run, label, esgd.best().model, counters, running)
        generations = self.arm.schedule.generations(epoch)
        if not generations or counters.left(budget) == 0 or counters.diverged:
            return
        spent = esgd.sample_forwards
        records = esgd.evolve(
            generations,
            max_forwards=counters.left(budget),
            on_generation=lambda record: note_generation(seed_run, label, record, counters, epoch),
        )
        # scoring everybody before the first round is in no record
        noted = sum(record.sample_forwards for record in records)
        counters.forwards += esgd.sample_forwards - spent - noted
        where = f"{label} seed {seed_run.seed} epoch {counters.epoch}"
        seed_run.watch.say(f"{where}: best {records[-1].candidate:.4f}")
        warn_of_failures(seed_run, where, records)

    def _train(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int
    ) -> tuple[dict[str, float], int]:
        """Train an individual for an epoch; what it sees follows from (seed, individual, epoch)."""
        seed_run, training = self.seed_run, self.arm.training
        running, forwards = train_epoch(
            model,
            optimizer,
            seed_run.parts.gradients(training.all_data),
            seed_run.parts.data,
            training,
            seed=derive_seed(seed_run.seed, "individual", self.models.index(model)),
            epoch=epoch,
            max_forwards=None,
            on_step=seed_run.watch.advance,
        )
        return running, forwards // PER_GRADIENT_EXAMPLE

    def finish(self, counters: Counters) -> nn.Module:
        """Return the individual with the best fitness."""
        return self.esgd.best().model

    def state(self) -> dict[str, Any]:
        """Return the population's state."""
        return {"esgd": self.esgd.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.esgd.load_state_dict(state["esgd"])
