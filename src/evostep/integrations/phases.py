"""When a callback evolves, on what, and who is told: the same in every framework."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any
from weakref import ref

from torch import nn

from evostep.compatibility import FitnessLike
from evostep.errors import InputError, warn
from evostep.integrations.processes import evolve
from evostep.integrations.trackers import Tracker
from evostep.integrations.wrappers import find_evolved, unwrapped
from evostep.optimizer import Evolved
from evostep.ranks import is_first
from evostep.record import Record
from evostep.schedule import Alternate
from evostep.scoring.fitness import Fitness

FitnessOf = Fitness | Callable[[nn.Module], FitnessLike]


class Phases:
    """Phases of evolution among the steps of a training loop that is somebody else's.

    Args:
        fitness: an `evostep.Fitness`, or a function of the model that returns one, called when the
            framework has made the model.
        generations: of each phase, one after each epoch; or an `Alternate`, which counts epochs:
            ``Alternate(evolution=5, start=40)`` leaves the first 40 to gradients.
        every_steps: a phase after each so many steps of the optimizer instead; an `Alternate`
            counts these then.
        accept_on: as `fitness`; decides survival, see `Evolved.evolve`.
        max_forwards: of a phase.
        max_seconds: of a phase.
        trackers: see `Tracker`.
        **unknown: refused, with what to write instead.

    Raises:
        ValueError: `generations` of another kind, `every_steps` below 1.
        TypeError: an argument that there is none of.

    Example:
        >>> import torch, evostep
        >>> model = torch.nn.Linear(2, 2)
        >>> batches = [(torch.randn(64, 2), torch.randint(2, (64,)))]
        >>> def fitness(model):
        ...     return evostep.Fitness(model, batches, "accuracy")
        >>> callback = Phases(fitness, Alternate(evolution=3, start=1))  # a framework's Evolve
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> callback.begin([evostep.Evolved(base, evostep.OpenAIES(0.1))])  # the framework calls
        >>> [len(callback.after_epoch(model, epoch, step=epoch)) for epoch in range(3)]
        [0, 3, 3]
    """

    # skorch makes copies by these names: each argument is kept as it is
    def __init__(
        self,
        fitness: FitnessOf,
        generations: int | Alternate = 1,
        *,
        every_steps: int | None = None,
        accept_on: FitnessOf | None = None,
        max_forwards: int | None = None,
        max_seconds: float | None = None,
        trackers: Sequence[Tracker] = (),
        **unknown: Any,
    ) -> None:
        if unknown:
            raise TypeError(_no_argument(next(iter(unknown))))
        _schedule(generations)
        self.fitness = fitness
        self.generations = generations
        self.every_steps = every_steps
        self.accept_on = accept_on
        self.max_forwards = max_forwards
        self.max_seconds = max_seconds
        self.trackers = trackers
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        self._optimizer: Evolved | None = None
        self._step = 0  # of which was seen to
        self._ran = False
        self._model: ref[nn.Module] | None = None
        self._scores: tuple[FitnessLike, FitnessLike | None] | None = None

    def begin(self, optimizers: Iterable[Any], step: int = 0) -> None:
        """Find the optimizer before training begins, and open the trackers.

        Raises:
            ValueError: not one of the optimizers is an `Evolved`, or several are.
        """
        optimizers = list(optimizers)
        found, failure = [], None
        for optimizer in optimizers:
            try:
                found.append(find_evolved(optimizer))
            except InputError as error:
                failure = error
        if not found and failure is not None:
            raise failure
        if len(found) != 1:
            raise InputError(
                f"{len(found)} of {len(optimizers)} optimizers are evostep.Evolved: Evolve needs "
                "to know of one; call evostep.integrations.evolve in a hook of your own"
            )
        self._optimizer, self._step, self._ran = found[0], step, False
        for tracker in self.trackers if is_first() else ():
            tracker.begin(self._optimizer)

    def after_step(self, model: nn.Module, step: int) -> list[Record]:
        """Evolve after a step of the optimizer, if it is due.

        Args:
            model: that trains, wrapped or not.
            step: how many steps there have been; the same as before: nothing is due.
        """
        due = self.every_steps is not None and step != self._step and step % self.every_steps == 0
        self._step = step
        return self._evolve(model, step // (self.every_steps or 1) - 1, step) if due else []

    def after_epoch(self, model: nn.Module, epoch: int, step: int) -> list[Record]:
        """Evolve after an epoch (counted from 0), if it is due."""
        return [] if self.every_steps is not None else self._evolve(model, epoch, step)

    def end(self) -> None:
        """Close the trackers, when training has ended."""
        for tracker in self.trackers if is_first() else ():
            tracker.close()
        if self._optimizer is not None and not self._ran:
            every = f"{self.every_steps} steps" if self.every_steps else "epoch"
            schedule = _schedule(self.generations)
            cure = "train longer" + (", or take a smaller start=" if schedule.start else "")
            smaller = ", or take a smaller every_steps=" if self.every_steps else ""
            warn(
                "Evolve has evolved nothing: training ended before a phase was due, after each "
                f"{every} as {schedule!r} says: {cure}{smaller}"
            )
        self._optimizer = None

    def _evolve(self, model: nn.Module, number: int, step: int) -> list[Record]:
        """Run the phase that follows an epoch, or some steps, of this number."""
        generations = _schedule(self.generations).generations(number)
        if generations == 0:
            return []
        self._ran = True
        fitness, accept_on = self._made(unwrapped(model))
        return evolve(
            self._optimizer,
            fitness,
            generations,
            accept_on=accept_on,
            max_forwards=self.max_forwards,
            max_seconds=self.max_seconds,
            trackers=self.trackers,
            step=step,
        )

    def _made(self, model: nn.Module) -> tuple[FitnessLike, FitnessLike | None]:
        """Return what scores the model, made once for each."""
        if self._scores is None or self._model is None or self._model() is not model:
            other = None if self.accept_on is None else _of(self.accept_on, model, "accept_on")
            self._scores = _of(self.fitness, model, "fitness"), other
            self._model = ref(model)
        return self._scores

    def __getstate__(self) -> dict[str, Any]:
        # what belongs to a run under way is found again
        run = {"_optimizer": None, "_model": None, "_scores": None}
        return {**self.__dict__, **run}


def _schedule(generations: int | Alternate) -> Alternate:
    """Return when there are how many generations."""
    if isinstance(generations, Alternate):
        return generations
    if not isinstance(generations, int):
        raise InputError(
            f"generations must be a whole number or an evostep.Alternate, got {generations!r}"
        )
    return Alternate(evolution=generations)


def _no_argument(name: str) -> str:
    """Return what is wrong with an argument that there is none of, and what to write."""
    if name in (field.name for field in fields(Alternate)):
        number = "generations" if name == "evolution" else "40"
        return f"Evolve takes no {name}=: write generations=evostep.Alternate({name}={number})"
    known = [one for one in inspect.signature(Phases).parameters if one != "unknown"]
    return f"Evolve takes no {name}=: it takes {', '.join(known)}"


def _of(given: FitnessOf, model: nn.Module, name: str) -> FitnessLike:
    """Return a fitness as it is given, or as a function makes it of the model."""
    if isinstance(given, Fitness):
        return given
    try:
        inspect.signature(given).bind(model)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} must be an evostep.Fitness or a function of the model that returns one, got "
            f"{given!r}"
        ) from None
    made = given(model)
    if not callable(made):
        raise InputError(
            f"{name} returned {made!r} for the model: return an evostep.Fitness, or a function "
            "without arguments that scores the model as it stands"
        )
    return made
