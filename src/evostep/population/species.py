"""Species: a torch optimizer whose hyper-parameters are drawn from stated ranges."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from evostep.errors import unknown_name
from evostep.noise import derive_seed, make_generator


class Species:
    """An optimizer class and ranges of its hyper-parameters, from which individuals are drawn.

    A hyper-parameter is given as

    - ``(low, high)``: a number drawn uniformly from the range;
    - ``(low, high, "log")``: a number whose logarithm is drawn uniformly, low > 0;
    - ``[a, b, ...]``: one of these;
    - anything else: fixed.

    One whose own default is a tuple (``betas``) is given as a tuple of as many parts, each a range,
    a list or a number: ``betas=((0.8, 0.95), 0.999)``.

    Args:
        optimizer: a torch optimizer class, or a function ``(parameters, **hyper) -> Optimizer``.
        hyper: its hyper-parameters, at least one of them a range or a list.

    Raises:
        ValueError: no range at all; a range that is none; a name that the optimizer has not.

    Example:
        >>> species = Species(torch.optim.SGD, lr=(1e-3, 1e-1, "log"), momentum=(0, 0.99))
        >>> optimizer = species.make(torch.nn.Linear(2, 2), seed=0, individual=3)
        >>> 1e-3 <= optimizer.param_groups[0]["lr"] <= 1e-1
        True
    """

    def __init__(self, optimizer: Callable[..., Optimizer], **hyper: Any) -> None:
        if not callable(optimizer):
            raise ValueError(
                f"a species needs an optimizer class such as torch.optim.SGD, got {optimizer!r}"
            )
        self.optimizer = optimizer
        self.hyper = hyper
        self._name: str = getattr(optimizer, "__name__", repr(optimizer))
        self._tuples = _tuple_parameters(optimizer, self._name, hyper)
        varies = False
        for name, value in hyper.items():
            parts = value if name in self._tuples else (value,)
            if not isinstance(parts, tuple) or len(parts) != self._tuples.get(name, 1):
                raise ValueError(
                    f"{name} of the species {self._name} must be a tuple of {self._tuples[name]} "
                    f"numbers or ranges, got {value!r}"
                )
            for part in parts:
                _check_range(f"{name} of the species {self._name}", part)
            varies = varies or any(isinstance(part, tuple | list) for part in parts)
        if not varies:
            raise ValueError(
                f"the species {self._name} has no range, got {hyper}: give at least one, such as "
                "lr=(1e-3, 1e-1, 'log')"
            )

    def __repr__(self) -> str:
        hyper = "".join(f", {name}={value!r}" for name, value in self.hyper.items())
        return f"Species({self._name}{hyper})"

    def draw(self, *, seed: int = 0, individual: int = 0) -> dict[str, Any]:
        """Draw hyper-parameters: a pure function of (seed, individual, name).

        Example:
            >>> species = Species(torch.optim.SGD, lr=(0.1, 0.2), nesterov=[False])
            >>> species.draw(individual=1) == species.draw(individual=1)
            True
        """
        drawn: dict[str, Any] = {}
        for name, value in self.hyper.items():
            parts = value if name in self._tuples else (value,)
            values = tuple(
                _draw(part, derive_seed(seed, "species", individual, name, i))
                for i, part in enumerate(parts)
            )
            drawn[name] = values if name in self._tuples else values[0]
        return drawn

    def make(self, model: nn.Module, *, seed: int = 0, individual: int = 0) -> Optimizer:
        """Make an optimizer of this species for the parameters of `model` that need a gradient."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(
                f"no parameter of the {type(model).__name__} needs a gradient, so that the species "
                f"{self._name} has nothing to train"
            )
        return self.optimizer(parameters, **self.draw(seed=seed, individual=individual))


def _tuple_parameters(
    optimizer: Callable[..., Optimizer], name: str, hyper: dict[str, Any]
) -> dict[str, int]:
    """Return the hyper-parameters that are tuples, with their lengths; refuse unknown ones."""
    try:
        parameters = inspect.signature(optimizer).parameters
    except (TypeError, ValueError):  # compiled, without a signature
        return {}
    if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for key in hyper:
            if key not in parameters:
                known = [k for k in parameters if k not in ("self", "params")]
                raise unknown_name(f"hyper-parameter of {name}", key, known)
    return {
        key: len(parameters[key].default)
        for key in hyper
        if key in parameters and isinstance(parameters[key].default, tuple)
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_range(what: str, value: Any) -> None:
    if isinstance(value, list) and not value:
        raise ValueError(f"{what} is an empty list: give at least one choice")
    if not isinstance(value, tuple):
        return
    log = len(value) == 3 and value[2] == "log"
    if not (log or len(value) == 2) or not all(_is_number(v) for v in value[:2]):
        raise ValueError(
            f"{what} must be a range (low, high) or (low, high, 'log'), got {value!r} "
            "(a fixed value is no tuple, choices are a list)"
        )
    if not value[0] < value[1] or (log and value[0] <= 0):
        need = "0 < low < high" if log else "low < high"
        raise ValueError(f"{what} must be a range with {need}, got {value!r}")


def _draw(value: Any, key: int) -> Any:
    if not isinstance(value, tuple | list):
        return value
    u = float(torch.rand((), dtype=torch.float64, generator=make_generator(key)))
    if isinstance(value, list):
        return value[int(u * len(value))]
    low, high = float(value[0]), float(value[1])
    if len(value) == 3:
        return min(max(math.exp(math.log(low) + u * math.log(high / low)), low), high)
    return low + u * (high - low)
