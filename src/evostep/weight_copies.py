"""Copies of the weights in an optimizer's state: they move with the weights, or undo the move.

A float32 master, Lookahead's slow weights, schedule-free's z, the x0 of dual averaging, an average:
the next step computes the weights from such a copy again. So it moves by the same displacement.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from evostep.errors import warn
from evostep.interrupts import finish

# What the state of an optimizer calls a copy of the weights, by the optimizer's class; under "" in
# whatever class, as far as a tensor of the parameter's shape is there.
MOVES: dict[str, frozenset[str]] = {
    "": frozenset(
        {
            *("master", "master_param", "master_params", "fp32_param", "param_fp32"),
            *("slow", "slow_param", "slow_params", "slow_buffer", "slow_weights"),
            *("cached_params", "ema", "ema_param", "ema_params", "param_ema", "shadow"),
            *("x0", "p0", "prev_param", "anchor", "initial_param", "param_copy"),
        }
    ),
    "A2Grad": frozenset({"x_k"}),
    "ASGD": frozenset({"ax"}),
    "AccSGD": frozenset({"momentum_buffer"}),
    "DAdaptSGD": frozenset({"z"}),
    "FOCUS": frozenset({"pbar"}),
    **dict.fromkeys(
        (
            *("SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree", "ScheduleFreeWrapper"),
            *("SGDScheduleFreeReference", "AdamWScheduleFreeReference"),
            *("ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam"),
            *("SGDScheduleFreeClosure", "AdamWScheduleFreeClosure", "RAdamScheduleFreeClosure"),
            "AdamWScheduleFreePaper",
        ),
        frozenset({"z"}),
    ),
}
# What it calls something else of the same shape: moments, curvatures, steps.
STAYS = frozenset(
    {
        *("momentum_buffer", "momentum", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"),
        *("square_avg", "grad_avg", "acc_delta", "sum", "prev", "step_size", "d", "variance"),
        *("previous_grad", "prev_grad", "exp_avg_diff", "exp_avg_slow", "exp_avg_nest_sq"),
        *("exp_avg_var", "exp_hessian_diag_sq", "exp_grad_norm", "hessian", "hessian_moment"),
    }
)
# Whose weights are a function of such a state that no displacement is known for: told.
COMPUTES = {"FTRL": "z"}
# How like the weights a tensor of another name must be (the cosine of their angle) to be told.
_ALIKE, _DEVIATIONS = 0.5, 5.0


class WeightCopies:
    """The copies that an optimizer holds of the tensors that evolve; `follow` moves them.

    Which they are is found when evolution begins: by the table `MOVES` first; then by equality with
    the parameter, unless it is constant, as what was just initialised may be, too. A tensor of
    another name that is merely like the weights is told in a warning, once for an optimizer.

    Args:
        optimizer: with its state, and those of optimizers within it.
        tensors: which may move.
        told: classes of optimizers of which a warning told already; added to.
        undo: whether the weights may go back to where they are now: then the copies do so, too, to
            the bit.
    """

    def __init__(
        self, optimizer: Optimizer, tensors: Collection[Tensor], told: set[str], *, undo: bool
    ) -> None:
        self._copies = found = [(p, kept) for p in tensors for kept in _copies(optimizer, p, p)]
        self._last = [p.detach().clone() for p, _ in found]
        self._start = [(p.detach().clone(), kept.clone()) for p, kept in found] if undo else []
        for one in _within(optimizer):
            name = type(one).__name__
            if name not in told and (alike := _unknown(one, tensors)):
                told.add(name)
                warn(
                    f"the state {alike!r} of {name} looks like a copy of the weights, from which "
                    "its next step may undo what evolution gained: take an optimizer without one, "
                    f"or delete optimizer.state[p][{alike!r}] after evolve()"
                )

    @torch.no_grad()
    def follow(self) -> None:
        """Move the copies as far as the weights have moved since."""
        for i, (p, kept) in enumerate(self._copies):
            last = self._last[i]
            if torch.equal(p, last):
                continue
            if self._start and torch.equal(p, self._start[i][0]):
                there = self._start[i][1]
            else:
                there = moved(kept, last, p)
            finish(partial(_copy, (kept, there), (last, p)))


@torch.no_grad()
def carry_over(optimizer: Optimizer, p: Tensor, before: Tensor, after: Tensor) -> None:
    """Move the copies of one parameter, whose state belongs to the weights `before`, to `after`."""
    for kept in _copies(optimizer, p, before):
        kept.copy_(moved(kept, before, after))


def _copy(*pairs: tuple[Tensor, Tensor]) -> None:
    for tensor, value in pairs:
        tensor.copy_(value)


def moved(kept: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return a copy of weights after these have moved: by the same displacement.

    Where it rounds to the weight in the weight's type, as a float32 master does, it still does.

    Example:
        >>> moved(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.1, 2.5]))
        tensor([0.1000, 3.5000])
    """
    there = kept + (after.to(kept.dtype) - before.to(kept.dtype))
    together = kept.to(before.dtype) == before
    apart = there.to(after.dtype) != after
    return torch.where(together & apart, after.to(kept.dtype), there)


def _within(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield an optimizer and those that it wraps, each once."""
    waiting, seen = [optimizer], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [value for value in vars(one).values() if isinstance(value, Optimizer)]


def _copies(optimizer: Optimizer, p: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """Yield the copies in the state of `p`, which holds, or held, these weights."""
    for one in _within(optimizer):
        moves = MOVES[""] | MOVES.get(type(one).__name__, frozenset())
        for key, value in _state_of(one, p).items():
            if key in moves or (key not in STAYS and _equals(value, weights)):
                yield value


def _state_of(optimizer: Optimizer, p: Tensor) -> dict[str, Tensor]:
    state = optimizer.state.get(p, {}) if isinstance(optimizer.state, Mapping) else {}
    if not isinstance(state, Mapping):
        return {}
    return {key: value for key, value in state.items() if _fits(value, p) and isinstance(key, str)}


def _fits(value: Any, p: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value is not p
        and value.shape == p.shape
        and value.is_floating_point()
        and value.device == p.device
        and value.dim() > 0
    )


def _equals(value: Tensor, p: Tensor) -> bool:
    return torch.equal(value.to(p.dtype), p) and not _constant(p)


def _constant(p: Tensor) -> bool:
    return p.numel() == 0 or not bool((p != p.flatten()[0]).any())


def _unknown(optimizer: Optimizer, tensors: Collection[Tensor]) -> str | None:
    """Return the key of a state that is like the weights, of whatever name; None: there is none."""
    if type(optimizer).__name__ in COMPUTES:
        return COMPUTES[type(optimizer).__name__]
    known = STAYS | MOVES[""] | MOVES.get(type(optimizer).__name__, frozenset())
    sums: dict[str, list[Tensor]] = {}
    numbers: dict[str, int] = {}
    for p in tensors:
        for key, value in _state_of(optimizer, p).items():
            if key in known or _equals(value, p) or _constant(p):
                continue
            a, b = value.double().flatten(), p.detach().double().flatten()
            products = torch.stack([a @ b, a @ a, b @ b])
            sums.setdefault(key, []).append(products)
            numbers[key] = numbers.get(key, 0) + p.numel()
    for key, parts in sums.items():
        ab, aa, bb = torch.stack([part.cpu() for part in parts]).sum(0).tolist()
        cosine = ab / (aa * bb) ** 0.5 if aa * bb > 0 else 0.0
        if cosine >= max(_ALIKE, min(0.95, _DEVIATIONS / numbers[key] ** 0.5)):
            return key
    return None
