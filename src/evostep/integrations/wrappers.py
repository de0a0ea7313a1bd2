"""What frameworks wrap around an optimizer and a model, and the way to what is inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from evostep.errors import InputError
from evostep.optimizer import Evolved
from evostep.strategies.base import Strategy

# Whose wrappers hand gradient steps on to the optimizer inside and keep nothing of the weights.
# Another one, such as Lookahead, may keep copies, which would undo what evolution does.
_FRAMEWORKS = ("accelerate", "lightning", "lightning_fabric", "pytorch_lightning")


def find_evolved(optimizer: Any) -> Evolved:
    """Return the `Evolved` within what Accelerate, Fabric or Lightning made of it.

    Args:
        optimizer: as the framework hands it back, or an `Evolved`.

    Raises:
        ValueError: there is none inside.

    Example:
        >>> import torch, evostep
        >>> base = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
        >>> find_evolved(evostep.Evolved(base, evostep.OpenAIES(0.1))).base is base
        True
    """
    inner = optimizer
    # Fabric's wrapper takes the class of what it wraps, too; what it lacks is the base
    while not (isinstance(inner, Evolved) and "base" in vars(inner)):
        ours = type(inner).__module__.partition(".")[0] in _FRAMEWORKS
        held = vars(inner) if ours else {}
        inner = held.get("optimizer", held.get("_optimizer"))
        if inner is None:
            raise InputError(
                f"{type(optimizer).__name__} holds no evostep.Evolved: wrap the optimizer before "
                "the framework does, as Evolved(optimizer, evostep.OpenAIES(sigma=0.02))"
            )
    return inner


def evolved(
    optimizer: Callable[..., Optimizer], strategy: Strategy, **options: Any
) -> Callable[..., Evolved]:
    """Return a function that makes an `Evolved`, for what takes an optimizer's class: skorch.

    Args:
        optimizer: the base's class, called with what the function is called with.
        strategy: see `Evolved`.
        **options: of `Evolved`.

    Example:
        >>> import torch, evostep
        >>> make = evolved(torch.optim.SGD, evostep.OpenAIES(0.1), seed=3)
        >>> make(torch.nn.Linear(2, 2).parameters(), lr=0.1).base.defaults["lr"]
        0.1
    """
    return partial(_make, optimizer, strategy, options)


def _make(
    optimizer: Callable[..., Optimizer],
    strategy: Strategy,
    options: dict[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Evolved:
    return Evolved(optimizer(*args, **kwargs), strategy, **options)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module within DistributedDataParallel, DataParallel, torch.compile and Fabric's.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> unwrapped(torch.nn.DataParallel(model)) is model
        True
    """
    while True:
        kind = type(model)
        if issubclass(kind, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner: Any = model.module
        elif kind.__module__.partition(".")[0] in _FRAMEWORKS and kind.__name__ == "_FabricModule":
            inner = model.module
        else:
            inner = model._modules.get("_orig_mod")
        if inner is None:
            return model
        model = inner
