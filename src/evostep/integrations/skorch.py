"""Evolution in skorch's NeuralNet.

A phase runs after an epoch's training batches, before its validation: a score in the history is
that of the weights that a `Checkpoint` saves.
"""

from __future__ import annotations

from math import nan
from typing import Any

from evostep.errors import needs_package
from evostep.integrations.phases import Phases
from evostep.integrations.trackers import scalars
from evostep.integrations.wrappers import evolved as evolved
from evostep.record import Record

try:
    from skorch.callbacks import Callback
except ImportError as error:
    wanted = ("evostep.integrations.skorch", "skorch", "evostep[skorch]")
    raise ImportError(needs_package(*wanted, error)) from error

_SHOWN = "evolution/parent"


class Evolve(Phases, Callback):  # type: ignore[misc]
    """Evolves the weights of a net whose ``optimizer=`` is `evolved`, say, of an optimizer's class.

    The history has ``evolution/parent``, the score before the last generation of the epoch's phase.
    What `save_params` writes for the optimizer holds evolution's state; after `load_params` of
    that, of the weights and of the history, `partial_fit` goes on with the same bits.

    Args:
        fitness: an `evostep.Fitness`, or a function of the module that returns one.
        generations: see `Phases`, as is all else.
    """

    _last: list[Record]  # of the epoch's last phase
    _done: bool  # whether the epoch's end was seen to

    def _get_param_names(self) -> list[str]:
        """Return the names by which skorch copies and sets: those of the arguments."""
        return [name for name in vars(self) if not name.startswith("_")]

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Find the optimizer."""
        self.begin([net.optimizer_], _steps(net))

    def on_epoch_begin(self, net: Any, *_: Any, **__: Any) -> None:
        """Note that nothing was done yet."""
        self._last, self._done = [], False

    def on_batch_begin(self, net: Any, batch: Any = None, training: Any = None, **_: Any) -> None:
        """Evolve before the first batch of the validation."""
        if not training:
            self._end_epoch(net)

    def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **_: Any) -> None:
        """Evolve, if a step was the last of `every_steps`."""
        if training:
            self._last = self.after_step(net.module_, _steps(net)) or self._last

    def on_epoch_end(self, net: Any, *_: Any, **__: Any) -> None:
        """Evolve where there is no validation."""
        self._end_epoch(net)

    def _end_epoch(self, net: Any) -> None:
        if self._done:
            return
        self._done = True
        last = self.after_epoch(net.module_, len(net.history) - 1, _steps(net)) or self._last
        net.history.record(_SHOWN, scalars(last[-1]).get(_SHOWN, nan) if last else nan)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Close the trackers."""
        self.end()


def _steps(net: Any) -> int:
    """Return how many training batches there have been, those before `load_params`, too."""
    return sum("train_loss" in batch for row in net.history for batch in row["batches"])
