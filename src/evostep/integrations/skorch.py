"""Evolution in skorch's NeuralNet.

A phase runs after an epoch's training batches, before its validation: a score in the history is
that of the weights that a `Checkpoint` saves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from skorch.callbacks import Callback

from evostep.integrations.phases import FitnessOf, Phases
from evostep.integrations.trackers import Tracker, scalars
from evostep.integrations.wrappers import evolved as evolved
from evostep.schedule import Alternate

_SHOWN = "evolution/parent"


class Evolve(Phases, Callback):  # type: ignore[misc]
    """Evolves the weights of a net whose ``optimizer=`` is `evolved`, say, of an optimizer's class.

    The history has ``evolution/parent``, the score before the last generation of the epoch's phase.
    What `save_params` writes for the optimizer holds evolution's state; after `load_params` of
    that, of the weights and of the history, `partial_fit` goes on with the same bits.

    Args:
        fitness: an `evostep.Fitness`, or a function of the module that returns one.
        generations: see `Phases`, as is all else; phases are by epochs.
        accept_on: see `Phases`.
        max_forwards: see `Phases`.
        max_seconds: see `Phases`.
        trackers: see `Phases`.
    """

    def __init__(
        self,
        fitness: FitnessOf,
        generations: int | Alternate = 1,
        accept_on: FitnessOf | None = None,
        max_forwards: int | None = None,
        max_seconds: float | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        super().__init__(
            fitness,
            generations,
            accept_on=accept_on,
            max_forwards=max_forwards,
            max_seconds=max_seconds,
            trackers=trackers,
        )
        self._evolved = False

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Find the optimizer."""
        self.begin([net.optimizer_])

    def on_epoch_begin(self, net: Any, *_: Any, **__: Any) -> None:
        """Note that nothing was done yet."""
        self._evolved = False

    def on_batch_begin(self, net: Any, batch: Any = None, training: Any = None, **_: Any) -> None:
        """Evolve before the first batch of the validation."""
        if not training:
            self._once(net)

    def on_epoch_end(self, net: Any, *_: Any, **__: Any) -> None:
        """Evolve where there is no validation."""
        self._once(net)

    def _once(self, net: Any) -> None:
        if self._evolved:
            return
        self._evolved = True
        epoch = len(net.history) - 1
        records = self.after_epoch(net.module_, epoch, epoch + 1)
        score = scalars(records[-1]).get(_SHOWN, math.nan) if records else math.nan
        net.history.record(_SHOWN, score)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Close the trackers."""
        self.end()
