"""Evolution in Lightning's Trainer; Fabric's loops call `evostep.integrations.evolve`.

A phase runs as the last training batch of an epoch ends: validation and checkpoints come after it,
so that a monitored score is that of the weights that are saved. In `on_train_epoch_end` validation
has been.
"""

from __future__ import annotations

from typing import Any

from evostep.errors import needs_package
from evostep.integrations.phases import Phases
from evostep.integrations.trackers import scalars

try:
    from lightning.pytorch import Callback
except ImportError as error:
    try:
        from pytorch_lightning import Callback  # the other name of the same
    except ImportError:
        wanted = ("evostep.integrations.lightning", "lightning", "evostep[lightning]")
        raise ImportError(needs_package(*wanted, error)) from error


class Evolve(Phases, Callback):  # type: ignore[misc]
    """Evolves the weights of a LightningModule whose `configure_optimizers` returns an `Evolved`.

    What the last generation of a phase did is logged as ``evolution/...``. Checkpoints hold
    evolution's state with the optimizer's; `ckpt_path=` goes on with the same bits.

    Args:
        fitness: an `evostep.Fitness`, or a function of the LightningModule that returns one.
        generations: see `Phases`, as is all else.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the optimizer, when a checkpoint has been loaded."""
        self.begin(trainer.optimizers, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Evolve, if it is due."""
        step = trainer.global_step
        records = self.after_step(pl_module, step)
        if trainer.is_last_batch:
            records = records or self.after_epoch(pl_module, trainer.current_epoch, step)
        if records:
            pl_module.log_dict(
                scalars(records[-1]),
                on_step=False,
                on_epoch=True,
                batch_size=1,
                rank_zero_only=True,
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the trackers."""
        self.end()
