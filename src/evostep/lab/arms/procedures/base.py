"""What every procedure is, and the gradient descent that they share with the trunk."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from evostep.gradient_noise import GradientNoise
from evostep.lab.arms.arm import Arm, Training
from evostep.lab.arms.recording import note_epoch
from evostep.lab.arms.seed_run import Counters, SeedRun
from evostep.lab.arms.training import (
    PER_GRADIENT_EXAMPLE,
    cosine,
    make_optimizer,
    train_epoch,
)
from evostep.lab.data.parts import Sizes


class Learner:
    """A model and the optimizer that trains it: the trunk, and what every procedure begins with."""

    def __init__(self, seed_run: SeedRun, training: Training) -> None:
        self.seed_run, self.training = seed_run, training
        self.model = seed_run.build()
        self.optimizer = make_optimizer(training, self.model)
        self.noise: GradientNoise | None = None
        if training.gradient_noise:
            self.noise = GradientNoise(
                self.optimizer, eta=training.gradient_noise, seed=seed_run.seed
            )

    def descend(
        self, name: str, counters: Counters, budget: int | None = None, **extra: Any
    ) -> None:
        """Train for one epoch (less, where the budget ends) and write its line of history.

        Args:
            name: of the arm or trunk, for the history.
            counters: of the run; they count the epoch.
            budget: sample-forwards at which the run ends; None: there is no end.
            extra: what else goes into the line of history.
        """
        seed_run = self.seed_run
        began = time.perf_counter()
        running, forwards = train_epoch(
            self.model,
            self.optimizer,
            seed_run.parts.gradients(self.training.all_data),
            seed_run.parts.data,
            self.training,
            seed=seed_run.seed,
            epoch=counters.epoch,
            max_forwards=counters.left(budget),
            on_step=seed_run.watch.advance,
            rate=self._rate(counters),
        )
        counters.seconds += time.perf_counter() - began
        counters.forwards += forwards
        note_epoch(seed_run, name, self.model, counters, running, **extra)

    def _rate(self, counters: Counters) -> Callable[[int], float] | None:
        """Return the learning rate by the sample-forwards of an epoch; None where it stays.

        It falls with the share of the budget that is spent, by whatever it is spent; where there is
        no budget, with that of the epochs.
        """
        if self.training.schedule == "constant":
            return None
        begin, end = self.training.span
        whole = descent_cost(self.training, self.seed_run.sizes)

        def rate(spent: int) -> float:
            at: float = counters.forwards + spent
            if not self.seed_run.options.equal_budget:
                at = counters.epoch + spent / whole
            return cosine(self.training.lr, (at - begin) / max(1, end - begin))

        return rate

    def state(self) -> dict[str, Any]:
        """Return what is saved: plain tensors and numbers."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state if self.noise is None else {**state, "noise": self.noise.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.noise is not None:
            self.noise.load_state_dict(state["noise"])


def descent_cost(training: Training, sizes: Sizes) -> int:
    """Return the sample-forwards of one epoch of gradient descent."""
    return PER_GRADIENT_EXAMPLE * training.passes * sizes.gradients(training.all_data)


class Procedure(ABC):
    """What a run does from the trunk on: epoch by epoch, up to the model that is tested.

    What a run costs is known beforehand, in sample-forwards, from `epoch_cost`, `phase_cost` and
    `finish_cost`: pure functions of the arm and of the sizes of the data's parts.

    Attributes:
        evolves: whether it has generations, and so needs fitness examples.
        populates: whether it trains a population: ``--population`` is that of its offspring, and an
            epoch of mu individuals counts as mu.
        needs_fitness: whether it needs them for something else.
        reads: options that concern it, and no other procedure.
        descends: whether it takes gradient steps of its own, where it does not start from another.
        tunes: whether it asks the model to tune its own settings.
        merges: whether it asks the model to take in experts.

    Args:
        seed_run: what the runs of its seed share.
        arm: what is run.
        trunk: the state of the `Learner` that trained the trunk.
    """

    evolves: ClassVar[bool] = False
    populates: ClassVar[bool] = False
    needs_fitness: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    descends: ClassVar[bool] = True
    tunes: ClassVar[bool] = False
    merges: ClassVar[bool] = False

    def __init__(self, seed_run: SeedRun, arm: Arm, trunk: dict[str, Any]) -> None:
        self.seed_run, self.arm = seed_run, arm
        self.learner = Learner(seed_run, arm.training)
        self.learner.load(trunk)

    @classmethod
    def epoch_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return the sample-forwards of one epoch, without the generations that follow it."""
        return descent_cost(arm.training, sizes)

    @classmethod
    def phase_cost(cls, arm: Arm, sizes: Sizes, generations: int) -> int:
        """Return the most sample-forwards that a phase of so many generations takes."""
        return 0

    @classmethod
    def finish_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return the most sample-forwards that `finish` takes."""
        return 0

    @classmethod
    def excess(cls, arm: Arm, sizes: Sizes) -> int:
        """Return the most sample-forwards by which a run passes its budget: it ends a step."""
        return PER_GRADIENT_EXAMPLE * arm.training.batch + cls.finish_cost(arm, sizes)

    @classmethod
    def reserve(cls, arm: Arm, sizes: Sizes) -> int:
        """Return the sample-forwards of a budget that gradient steps leave for the end of a run."""
        return 0

    def finished(self, counters: Counters, budget: int | None) -> bool:
        """Return whether no epoch is left: `finish` comes next."""
        return counters.epoch >= self.arm.epochs if budget is None else counters.left(budget) == 0

    @abstractmethod
    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Do one epoch, and what follows it; stop where the budget is reached."""

    def finish(self, counters: Counters) -> nn.Module:
        """Return the model that is tested."""
        return self.learner.model

    def state(self) -> dict[str, Any]:
        """Return what is saved after each epoch: plain tensors and numbers."""
        return self.learner.state()

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was saved."""
        self.learner.load(state)
