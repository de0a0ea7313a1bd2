"""BatchNorm statistics, estimated again for weights that no gradient step led to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from evostep.errors import warn
from evostep.interrupts import Undoing
from evostep.scoring.batches import Batches, Forward
from evostep.scoring.isolation import modes_of, set_modes
from evostep.scoring.nests import batch_size


class Calibration:
    """Estimates a model's BatchNorm statistics again, on the same batches each time.

    Averages over the batches, each weighted by its number of examples, of the batch's mean and of
    its unbiased variance: what `torch.optim.swa_utils.update_bn` computes where batches are of one
    size. So the mean is that of all examples, and the variance that within batches. Takes any
    batch that a `Fitness` can read.

    Args:
        model: whose like is to be calibrated; a warning says if it keeps no statistics.
        batches: to estimate on, as for `Fitness`; read once, their targets are not used.
        forward: as for `Fitness`.

    Raises:
        ValueError: no batch.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> calibrate = Calibration(model, [(torch.tensor([[1.0], [3.0]]), torch.zeros(2))])
        >>> calibrate(model), model.running_mean
        (2, tensor([2.]))
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None
    ) -> None:
        self._batches = Batches(batches, forward)
        if not estimates(model):
            warn(
                "calibration has no effect: the model has no BatchNorm layer that keeps statistics",
            )

    def cost(self, model: nn.Module) -> int:
        """Return the number of examples that one estimate takes: 0 without BatchNorm layers."""
        return len(self._batches.examples(model)) if estimates(model) else 0

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> int:
        """Replace the statistics in place, modes untouched; return the number of examples used."""
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        if not estimates(model):
            return 0
        momenta = [norm.momentum for norm in norms]
        modes = modes_of(model)
        examples = self._batches.examples(model)

        def put_back() -> None:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            set_modes(modes)

        with Undoing(put_back):
            model.train()
            for norm in norms:
                norm.reset_running_stats()
            seen = 0
            for inputs, targets in examples:
                size = batch_size(inputs, targets)
                seen += size
                for norm in norms:
                    norm.momentum = size / seen  # the batch's share of all examples so far
                self._batches.apply(model, inputs, None)
        return len(examples)


def estimates(model: nn.Module) -> bool:
    """Return whether a model keeps BatchNorm statistics."""
    return any(
        isinstance(module, _BatchNorm) and module.running_mean is not None
        for module in model.modules()
    )
