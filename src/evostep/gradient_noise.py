"""Annealed noise on gradients, for any torch optimizer.

Neelakantan et al. 2015, "Adding Gradient Noise Improves Learning for Very Deep Networks"
(https://arxiv.org/abs/1511.06807): g <- g + N(0, s_t^2) with s_t^2 = eta / (1 + t)^gamma, gamma
0.55 and eta one of 0.01, 0.3 and 1. Their noise comes from a global stream; here it is a pure
function of (seed, t, name of the parameter), so that a resumed run draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from evostep.genome.slots import slots_of_groups
from evostep.noise import draw


class GradientNoise:
    """Adds noise of variance eta / (1 + t)^gamma to the gradients at each step of an optimizer.

    A hook of the optimizer does it, just before the step and in place: what ``parameter.grad``
    holds afterwards is the noisy gradient. It works on every `torch.optim.Optimizer`, `Evolved`
    included, and with GradScaler. Parameters without a gradient get none. A sparse gradient stays
    sparse: noise goes to its stored values alone.

    With ``step(closure)`` the gradients are the closure's, so the noise is added after each call of
    the closure. All calls within one step see the same noise: LBFGS, which calls it many times,
    then follows a gradient that is off by a constant, not one that jumps (its line search, which
    sees the loss too, does not know of the noise). The closure has to zero the gradients first, as
    torch asks.

    Hooks stay behind when an optimizer is copied or pickled: make a new one for the copy.

    Args:
        optimizer: whose gradients get noise.
        eta: variance of the noise at the first step, in squared units of the gradient, > 0.
        gamma: how fast the variance falls; 0 keeps it constant.
        seed: with t and the parameter's name it determines the noise. Names are those of an
            optimizer made from `named_parameters`, else positions such as ``group0.3``.

    Attributes:
        t: how many steps got noise so far.

    Raises:
        ValueError: no optimizer; eta or gamma out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(10_000))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> noise = GradientNoise(optimizer, eta=0.25)
        >>> weight.grad = torch.ones(10_000)
        >>> optimizer.step()
        >>> change = weight.detach()
        >>> round(float(change.mean()), 1), abs(float(change.std()) - 0.5) < 0.02
        (-1.0, True)
    """

    def __init__(
        self, optimizer: Optimizer, eta: float, gamma: float = 0.55, *, seed: int = 0
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if not (eta > 0 and math.isfinite(eta)):
            raise ValueError(f"eta must be a finite number > 0, got {eta}")
        if not (gamma >= 0 and math.isfinite(gamma)):
            raise ValueError(f"gamma must be a finite number >= 0, got {gamma}")
        self.eta = float(eta)
        self.gamma = float(gamma)
        self.seed = int(seed)
        self.t = 0
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    @property
    def std(self) -> float:
        """Standard deviation of the noise that the next step gets.

        Example:
            >>> weight = torch.nn.Parameter(torch.zeros(1))
            >>> GradientNoise(torch.optim.SGD([weight]), eta=0.25).std
            0.5
        """
        return math.sqrt(self.eta / (1 + self.t) ** self.gamma)

    def remove(self) -> None:
        """Leave the optimizer as it was; once is enough, twice does no harm."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to draw the same noise from here on: seed and t."""
        return {"seed": self.seed, "t": self.t}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; eta and gamma stay as they were given.

        Raises:
            ValueError: a key that is missing.
        """
        missing = {"seed", "t"} - set(state)
        if missing:
            raise ValueError(
                f"the state of a gradient noise lacks {', '.join(sorted(missing))}: pass what "
                "GradientNoise.state_dict() returned"
            )
        self.seed, self.t = int(state["seed"]), int(state["t"])

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        t, std = self.t, self.std
        self.t += 1
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._add(optimizer, t, std)
            return None

        def noisy(*inner: Any, **named: Any) -> Any:
            loss = closure(*inner, **named)
            self._add(optimizer, t, std)
            return loss

        return _with_closure(args, kwargs, noisy)

    @torch.no_grad()
    def _add(self, optimizer: Optimizer, t: int, std: float) -> None:
        # GradScaler leaves it to a fused optimizer to unscale, so that gradients are scaled here
        scale = getattr(optimizer, "grad_scale", None)
        # at each step anew: a group may have been added
        for name, parameter in slots_of_groups(optimizer.param_groups, None).tensors.items():
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
                values = parameter.grad._values()
            else:
                values = parameter.grad
            if values.is_complex():
                values = torch.view_as_real(values)
            noise: Tensor = draw(
                "normal", values, seed=self.seed, generation=t, member="gradient", name=name
            ).mul_(std)
            values.add_(noise if scale is None else noise.mul_(scale.to(noise.device)))


def _with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[..., Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put `closure` where the arguments of `step` had theirs."""
    if len(args) > 1:
        return (args[0], closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": closure}
