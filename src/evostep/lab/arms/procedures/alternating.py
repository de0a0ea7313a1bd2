"""Gradient descent and evolution in turns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from evostep.errors import counted
from evostep.lab.arms.arm import Arm
from evostep.lab.arms.evaluation import make_fitness
from evostep.lab.arms.procedures.base import Procedure
from evostep.lab.arms.recording import note_generation, warn_of_failures
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.data.parts import Sizes
from evostep.optimizer import Evolved
from evostep.record import STANDS_STILL
from evostep.spaces.span import Span


class Alternating(Procedure):
    """Gradient descent and evolution in turns: `Evolved`, driven by the arm's schedule.

    An arm that evolves at the end has one phase, after the last epoch that its budget allows.
    """

    evolves: ClassVar[bool] = True

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        super().__init__(seed_run, arm, trunk)
        self._told = False  # that nothing moves
        assert arm.strategy is not None, "only an arm that evolves alternates"
        parts, options, model = seed_run.parts, seed_run.options, self.learner.model
        self.evolved = Evolved(
            self.learner.optimizer,
            arm.strategy,
            space=arm.space,
            accept=arm.accept,
            model=model,
            seed=seed_run.seed,
            engine=options.engine,
        )
        self.learner.optimizer = self.evolved
        if isinstance(arm.space, Span):
            self.evolved.remember()  # where the trunk ended: a first phase has two to mix
        calibration = None
        if arm.mixes:
            calibration = parts.train.spread(options.calibration_size).batches(parts.data)
        self.fitness = make_fitness(model, parts.fitness, parts.data, options, calibration)
        self.accept_on = None
        if len(parts.accept) and arm.accept.needs_scores:
            self.accept_on = make_fitness(model, parts.accept, parts.data, options)

    @classmethod
    def epoch_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what an epoch of gradients takes; after a start there are generations alone."""
        return 0 if arm.start is not None else super().epoch_cost(arm, sizes)

    @classmethod
    def generation_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return the most sample-forwards of a generation: members, parent, and candidate.

        Where mixtures have their BatchNorm statistics estimated, the step's are, too; the parent is
        scored as it stands.
        """
        strategy, rule = arm.strategy, arm.accept
        assert strategy is not None, "only an arm that evolves alternates"
        calibration = sizes.calibration if arm.mixes else 0
        cost = strategy.size * (sizes.fitness + calibration) + sizes.fitness + calibration
        cost += strategy.measuring_cost(sizes.fitness, sizes.classes)
        if rule.needs_scores and rule.every == "generation":
            if sizes.accept:
                cost += 2 * sizes.accept
            elif not strategy.selects:  # the candidate is no member, so it has no score yet
                cost += sizes.fitness
        return cost

    @classmethod
    def phase_cost(cls, arm: Arm, sizes: Sizes, generations: int) -> int:
        """Return the most sample-forwards of a phase: its start, generations, and verdict."""
        if not generations:
            return 0
        cost = generations * cls.generation_cost(arm, sizes)
        if arm.mixes:  # the average and the weights as they stand are both tried
            cost += 2 * sizes.fitness + sizes.calibration
        if arm.accept.needs_scores and arm.accept.every == "phase":
            cost += 2 * (sizes.accept or sizes.fitness)
        return cost

    @classmethod
    def excess(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what a step, or the last generation of a phase, may spend beyond the budget."""
        return max(super().excess(arm, sizes), cls.phase_cost(arm, sizes, 1))

    @classmethod
    def reserve(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what the one phase takes of an arm that evolves at the end."""
        return cls.phase_cost(arm, sizes, arm.schedule.evolution) if arm.at_end else 0

    def finished(self, counters: Counters, budget: int | None) -> bool:
        """Return whether no epoch is left; after a start, and without a budget, no phase."""
        if self.arm.start is not None and budget is None:
            return counters.generations > 0
        return super().finished(counters, budget)

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Train for one epoch; remember its weights where a `Span` mixes them; evolve when due.

        After a start gradient descent has ended, and there are generations alone.
        """
        arm = self.arm
        if arm.start is not None:
            self._evolve(arm.schedule.evolution, counters, budget)
            return
        generations, descent_ends = arm.schedule.generations(counters.epoch), budget
        if arm.at_end and budget is not None:  # gradients have what the one phase leaves
            descent_ends = budget - self.reserve(arm, self.seed_run.sizes)
            generations = 0
        if descent_ends is None or counters.forwards < descent_ends:
            self.learner.descend(arm.label, counters, descent_ends)
            if isinstance(arm.space, Span):
                self.evolved.remember()
        if arm.at_end and descent_ends is not None and counters.forwards >= descent_ends:
            # the phase was reckoned at its most: what is left over goes into a further one
            generations = arm.schedule.evolution
        if generations and counters.left(budget) != 0 and not counters.diverged:
            self._evolve(generations, counters, budget)

    def _evolve(self, generations: int, counters: Counters, budget: int | None) -> None:
        """Evolve for one phase (less, where the budget ends), a line of history each generation."""
        seed_run, label, epoch = self.seed_run, self.arm.label, counters.epoch - 1
        where = f"{label} seed {seed_run.seed} epoch {counters.epoch}"
        with self._standing_still_told(where):
            records = self.evolved.evolve(
                self.fitness,
                generations,
                accept_on=self.accept_on,
                max_forwards=counters.left(budget),
                on_generation=lambda record: note_generation(
                    seed_run, label, record, counters, epoch
                ),
            )
        self.evolved.history.clear()  # they are written down: a long run keeps none in memory
        kept = sum(record.accepted for record in records)
        if records[-1].verdict is not None and not records[-1].moved:  # all of it is undone
            counters.accepted -= kept
            kept = 0
        seed_run.watch.say(
            f"{where}: {counted(len(records), 'generation')}, {kept} accepted, "
            f"fitness {records[0].parent:.4f} -> {self.fitness():.4f}"
        )
        warn_of_failures(seed_run, where, records)

    @contextmanager
    def _standing_still_told(self, where: str) -> Iterator[None]:
        """Tell once a run that members score as the weights they come from, and what may help."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for one in caught:
            if STANDS_STILL not in str(one.message):
                warnings.warn(one.message, stacklevel=2)
            elif not self._told:
                self._told = True
                self.seed_run.watch.warn(
                    f"{where}: {one.message} Further generations in which nothing moves are not "
                    f"told. {self._coarse()}"
                )

    def _coarse(self) -> str:
        part, data = self.seed_run.parts.fitness, self.seed_run.parts.data
        if data.of_texts:
            return "More fitness examples, or a larger sigma, may help."
        counts = torch.bincount(part.targets, minlength=len(data.classes))
        rarest = int(counts.argmin())
        return (
            f"A larger sigma, a metric with finer steps, or more fitness examples may help: "
            f"{data.classes[rarest]} has {int(counts[rarest])}."
        )
