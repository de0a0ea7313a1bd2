"""Minus the loss: what torch's losses give over all examples in one batch, from many batches.

A loss that can be told not to reduce gives a number for each position; how these are put together
(by their mean, their sum, their mean weighted by the class) is done here, in float64.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.errors import InputError

Loss = Callable[..., Any]

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_FUNCTIONS_OF_CLASSES = (F.cross_entropy, F.nll_loss)
_OF_LOGITS = (F.binary_cross_entropy_with_logits,)
_OF_PROBABILITIES = (F.binary_cross_entropy,)


def options_of(loss: Loss) -> Mapping[str, Any]:
    """Return what a loss was made with, by name: a module's attributes, a partial's arguments.

    Example:
        >>> options_of(nn.CrossEntropyLoss(ignore_index=0))["ignore_index"]
        0
    """
    if isinstance(loss, nn.Module):
        return {**vars(loss), **dict(loss.named_buffers(recurse=False))}
    if isinstance(loss, partial):
        return {**options_of(loss.func), **loss.keywords}
    return {}


def _function(loss: Loss) -> Loss:
    return _function(loss.func) if isinstance(loss, partial) else loss


def takes_classes(loss: Loss) -> bool:
    """Return whether a loss is torch's cross-entropy or likelihood of one of several classes."""
    return isinstance(loss, _OF_CLASSES) or _function(loss) in _FUNCTIONS_OF_CLASSES


def takes_probabilities(loss: Loss) -> bool | None:
    """Return whether a binary loss takes probabilities (True) or logits (False); None: neither."""
    if isinstance(loss, nn.BCELoss) or _function(loss) in _OF_PROBABILITIES:
        return True
    if isinstance(loss, nn.BCEWithLogitsLoss) or _function(loss) in _OF_LOGITS:
        return False
    return None


def _parameters(function: Loss) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):  # written in C++, as some of torch's are
        return {}


def unreduced(loss: Loss) -> Loss | None:
    """Return the loss that gives a number for each position; None where it cannot be told to."""
    if isinstance(loss, nn.Module):
        if not isinstance(getattr(loss, "reduction", None), str):
            return None
        module: Any = copy.copy(loss)  # weights are shared
        module.reduction = "none"
        return module  # type: ignore[no-any-return]
    if "reduction" in _parameters(loss):
        return partial(loss, reduction="none")
    return None


def reduction_of(loss: Loss) -> str:
    """Return ``"mean"``, ``"sum"`` or ``"batchmean"``; the mean stands for ``"none"``, too."""
    found = options_of(loss).get("reduction")
    if found is None and "reduction" in (parameters := _parameters(loss)):
        found = parameters["reduction"].default
    return found if found in ("sum", "batchmean") else "mean"


def per_example(
    loss: Loss, whole: Loss, outputs: Tensor, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return minus the loss summed over each example's positions, and what it is divided by.

    Args:
        loss: that does not reduce, see `unreduced`.
        whole: the same, as the user gave it.
        outputs: (n, classes, ...) for a loss of classes, else as the loss takes them.
        targets: that fit.
        weights: what each example counts, (n,), or each position, of the shape of the losses;
            None: 1. Where it is 0 outputs may be anything.

    Returns:
        (n,) float64 each: the sum of the first over that of the second is minus the loss.
    """
    values = -loss(outputs, targets)
    n = len(values) if values.ndim else 1
    values = values.double().reshape(n, -1)
    own = values.new_ones(1, 1).expand_as(values)
    if weights is not None:
        own = weights.double().reshape(len(weights), -1)
        if own.shape[1] not in (1, values.shape[1]) or len(own) != n:
            raise InputError(
                f"weights of shape {tuple(weights.shape)} for losses of {n} examples with "
                f"{values.shape[1]} positions each: give one for each example, (n,), or position"
            )
        own = own.expand_as(values)
        values = torch.where(own == 0, 0.0, values * own)
    sums = values.sum(1)
    if takes_classes(whole) and not targets.is_floating_point():
        options = options_of(whole)
        weight = options.get("weight")
        counted = targets != options.get("ignore_index", -100)
        each = counted.double()
        if weight is not None:
            each = weight.double()[torch.where(counted, targets, 0)] * each
        return sums, (own * each.reshape(n, -1)).sum(1)
    return sums, own.mean(1) if reduction_of(whole) == "batchmean" else own.sum(1)
