"""BatchNorm statistics, estimated again for weights that no gradient step led to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from evostep.errors import warn
from evostep.scoring.batches import Batches, Forward


class Calibration:
    """Estimates a model's BatchNorm statistics again, on the same batches each time.

    Cumulative averages over all batches, as `torch.optim.swa_utils.update_bn` computes them, with
    any batch that a `Fitness` can read.

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
        modes = [(module, module.training) for module in model.modules()]
        examples = self._batches.examples(model)
        try:
            update_bn(_wrapped(iter(examples)), _Reading(self._batches, model))
        finally:  # update_bn leaves momenta and modes as they are where a forward raises
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for module, training in modes:
                module.training = training
        return len(examples)


def estimates(model: nn.Module) -> bool:
    """Return whether a model keeps BatchNorm statistics."""
    return any(
        isinstance(module, _BatchNorm) and module.running_mean is not None
        for module in model.modules()
    )


class _Reading(nn.Module):
    """Sends a whole batch forward, in whatever form the reader takes it."""

    def __init__(self, batches: Batches, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._batches = batches

    def forward(self, batch: tuple[Any, Any]) -> Any:
        return self._batches.apply(self.model, *batch)


def _wrapped(batches: Iterator[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
    for batch in batches:
        yield [batch]  # update_bn takes the first of a list
