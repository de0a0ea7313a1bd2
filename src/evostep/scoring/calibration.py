"""BatchNorm statistics, estimated again for weights that no gradient step led to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

if TYPE_CHECKING:
    from evostep.scoring.fitness import Fitness


class Calibration:
    """Estimates a model's BatchNorm statistics again, on the same batches each time.

    Cumulative averages over all batches, as `torch.optim.swa_utils.update_bn` computes them, with
    any batch that a `Fitness` can read.

    Args:
        reader: a `Fitness` on the batches to estimate on, which are read once; its metric and the
            targets are not used.

    Raises:
        ValueError: no batch.

    Example:
        >>> from evostep import Fitness
        >>> model = nn.BatchNorm1d(1)
        >>> batches = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2))]
        >>> calibrate = Calibration(Fitness(model, batches))
        >>> calibrate(model), model.running_mean
        (2, tensor([2.]))
    """

    def __init__(self, reader: Fitness) -> None:
        self._reader = reader
        if not estimates(reader.model):
            warnings.warn(
                "calibration has no effect: the model has no BatchNorm layer that keeps statistics",
                stacklevel=3,
            )

    def cost(self, model: nn.Module) -> int:
        """Return the number of examples that one estimate takes: 0 without BatchNorm layers."""
        return len(self._reader.examples()) if estimates(model) else 0

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> int:
        """Replace the statistics in place, modes untouched; give the number of examples used."""
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        if not estimates(model):
            return 0
        momenta = [norm.momentum for norm in norms]
        modes = [(module, module.training) for module in model.modules()]
        examples = self._reader.examples()
        try:
            update_bn(_wrapped(iter(examples)), _Reading(self._reader, model))
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

    def __init__(self, reader: Fitness, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._reader = reader

    def forward(self, batch: tuple[Any, Any]) -> Any:
        return self._reader.apply(self.model, *batch)


def _wrapped(batches: Iterator[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
    for batch in batches:
        yield [batch]  # update_bn takes the first of a list
