"""Keywords of the base's own `step` reach it, through hooks and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evostep import Evolved, OpenAIES


class Mine(torch.optim.SGD):
    def step(self, closure: Any = None, *, scale: float = 1.0) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(scale)
        return super().step(closure)


def make() -> tuple[nn.Parameter, Evolved]:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    return p, Evolved(Mine([p], lr=0.1), OpenAIES(0.1, population=4))


def test_a_keyword() -> None:
    p, optimizer = make()
    optimizer.step(scale=2.0)
    assert torch.allclose(p, torch.full((2,), 0.8))


def test_a_keyword_and_a_closure_by_either_way() -> None:
    for closure in ((lambda: 3.0,), ()):
        p, optimizer = make()
        named = {} if closure else {"closure": lambda: 3.0}
        assert optimizer.step(*closure, scale=3.0, **named) == 3.0
        assert torch.allclose(p, torch.full((2,), 0.7))


def test_step_hooks_see_it_and_may_change_it() -> None:
    p, optimizer = make()
    seen: list[Any] = []

    def double(_: Any, args: Any, kwargs: Any) -> Any:
        seen.append(kwargs)
        return args, {**kwargs, "scale": 2 * kwargs["scale"]}

    optimizer.register_step_pre_hook(double)
    optimizer.register_step_post_hook(lambda _, args, kwargs: seen.append(kwargs))
    optimizer.step(scale=2.0)
    assert seen == [{"scale": 2.0}, {"scale": 4.0}]
    assert torch.allclose(p, torch.full((2,), 0.6))


def test_a_scheduler_passes_it_on() -> None:
    p, optimizer = make()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step(scale=2.0)
    assert torch.allclose(p, torch.full((2,), 0.8))
