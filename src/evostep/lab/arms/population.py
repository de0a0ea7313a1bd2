"""The course of ESGD: a population that branches from one trunk."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.epochs import note_epoch, note_generation, warn_of_failures
from evostep.lab.arms.procedures import Base, Procedure
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.arms.training import make_fitness, train_epoch
from evostep.population.esgd import ESGD
from evostep.population.species import Species


class Population(Procedure):
    """ESGD (arXiv 1810.06773): every individual starts at the trunk's weights.

    Half of them are SGD, half Adam, with learning rates drawn within a factor of 3 around the
    arm's own (a tenth of it for Adam). An epoch here is one of a single individual, so that a
    population of mu has `epochs` / mu epochs together.
    """

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(seed_run, arm, trunk)
        lr, population = arm.training.lr, arm.population
        species = (
            Species(torch.optim.SGD, lr=(lr / 3, lr * 3, "log"), momentum=(0.0, 0.95)),
            Species(torch.optim.Adam, lr=(lr / 30, lr * 0.3, "log")),
        )
        individuals: list[tuple[nn.Module, Species]] = []
        for i in range(population.individuals):
            base = Base(seed_run, arm.training)
            base.load(trunk)
            individuals.append((base.model, species[i % 2]))
        model = individuals[0][0]
        fitness = make_fitness(model, seed_run.parts.fitness, seed_run.parts.data, seed_run.options)
        self.esgd = ESGD(
            individuals,
            fitness,
            offspring=population.offspring,
            parents=population.parents,
            elite=population.elite,
            sigma=population.sigma,
            seed=seed_run.seed,
        )

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Let everybody train for an epoch, then breed."""
        arm, seed_run, esgd = self.arm, self.seed_run, self.esgd
        began, spent = time.perf_counter(), esgd.sample_forwards
        seen: list[dict[str, float]] = []

        def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
            running, forwards = train_epoch(
                model,
                optimizer,
                seed_run.parts.gradients(arm.training),
                seed_run.parts.data,
                arm.training,
                seed=seed_run.seed,
                epoch=int(torch.randint(2**31, ())),  # ESGD has seeded it for the individual
                max_forwards=None,
                on_step=seed_run.watch.advance,
            )
            seen.append(running)
            return forwards // 3

        esgd.descend(train, max_forwards=counters.left(budget))
        counters.seconds += time.perf_counter() - began
        counters.forwards += esgd.sample_forwards - spent
        running = {key: sum(one[key] for one in seen) / len(seen) for key in seen[0]}
        epoch = counters.epoch
        note_epoch(seed_run, arm.label, esgd.best().model, counters, running)
        generations = arm.schedule.generations(epoch)
        if generations and counters.left(budget) != 0:
            spent = esgd.sample_forwards
            records = esgd.evolve(
                generations,
                max_forwards=counters.left(budget),
                on_generation=lambda r: note_generation(seed_run, arm.label, r, counters, epoch),
            )
            # scoring everybody before the first round is in no record
            told = sum(record.sample_forwards for record in records)
            counters.forwards += esgd.sample_forwards - spent - told
            where = f"{arm.label} seed {seed_run.seed} epoch {counters.epoch}"
            seed_run.watch.say(f"{where}: best {records[-1].candidate:.4f}")
            warn_of_failures(seed_run, where, list(records))

    def finish(self, counters: Counters) -> nn.Module:
        """Return the individual with the best fitness."""
        return self.esgd.best().model

    def state(self) -> dict[str, Any]:
        """Return the population's state."""
        return {"esgd": self.esgd.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.esgd.load_state_dict(state["esgd"])
