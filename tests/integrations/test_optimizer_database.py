"""Every optimizer of torch's test database, and of timm, does in `Evolved` what it does bare."""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evostep import Evolved, RandomMutation

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("expecttest", reason="torch.testing._internal imports it")
    from torch.testing._internal import common_optimizers as torchs

STEPS = 6
Make = Callable[[Any], Optimizer]


def wrapped(optimizer: Optimizer) -> Evolved:
    return Evolved(optimizer, RandomMutation(0.1, population=2))


def trajectory(make: Make, start: list[Tensor], wrap: bool, info: Any = None) -> Any:
    """Return the weights after each step and the state at the end; or what was raised.

    The wrapped one evolves between, on what no member is better at; and is saved and loaded.
    """
    torch.manual_seed(0)
    params = [nn.Parameter(p.clone()) for p in start]
    found: list[Any] = []
    try:
        optimizer: Any = make(params)
        if wrap:
            optimizer = wrapped(optimizer)
        schedulers = [make(optimizer) for make in (info.scheduler_inputs[0] if info else [])]
        sparse = info is not None and info.only_supports_sparse_grads

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = torch.stack(
                [((p - 0.3).abs() ** 2 * (i + 1)).sum() for i, p in enumerate(params)]
            )
            total = loss.sum()
            if total.requires_grad:
                total.backward(create_graph=getattr(optimizer, "is_second_order", False))
            if sparse:
                for p in params:
                    p.grad = p.grad.to_sparse()
            return total

        for step in range(STEPS):
            closure()
            needs = info is not None and info.step_requires_closure
            optimizer.step(*([closure] if needs else []))
            for scheduler in schedulers:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(*([1.0] if plateau else []))
            found.append([p.detach().clone() for p in params])
            if wrap and step == 2:
                before = [p.detach().clone() for p in params]
                with torch.no_grad():
                    optimizer.evolve(lambda: 0.0, 2)
                assert all(map(torch.equal, before, params))
                state = copy.deepcopy(optimizer.state_dict())
                optimizer.load_state_dict(state)
            elif step == 2:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        state = optimizer.state_dict()
        found.append({key: state[key] for key in ("state", "param_groups")})
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
    return found


def starts(info: Any) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(4, 3, generator=generator), torch.randn(5, 2, generator=generator)]
    found = [plain]
    if info.supports_complex:
        found.append([torch.randn(4, 3, dtype=torch.complex64, generator=generator), plain[1]])
    return found


@pytest.mark.parametrize("info", torchs.optim_db, ids=lambda info: info.optim_cls.__name__)
def test_the_trajectory_is_that_of_the_bare_one(info: Any, same: Any) -> None:
    cases = torchs._get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info)
    done = 0
    for case in cases:
        for start in starts(info):
            make = functools.partial(info.optim_cls, **case.kwargs)
            bare, evolved = (trajectory(make, start, wrap, info) for wrap in (False, True))
            same(bare, evolved, case.desc)
            done += not isinstance(bare[-1], str)
    assert done >= len(cases) / 2  # what fails, fails in both; most do not


@pytest.mark.parametrize("info", torchs.optim_db, ids=lambda info: info.optim_cls.__name__)
def test_what_the_bare_one_refuses_is_refused(info: Any) -> None:
    tried = 0
    for dtype in (torch.float32, torch.complex64):
        for case in info.optim_error_inputs_func(device="cpu", dtype=dtype):
            given = case.optimizer_error_input
            make = functools.partial(info.optim_cls, **given.kwargs)
            bare, evolved = (failure(make, given.params, wrap) for wrap in (False, True))
            assert isinstance(bare, case.error_type)
            assert re.search(case.error_regex, str(bare))
            assert (type(bare), str(bare)) == (type(evolved), str(evolved))
            tried += 1
    assert tried > 0


def failure(make: Make, params: Any, wrap: bool) -> Exception | None:
    """Return what making the optimizer, or its first step, raises or warns of."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer = make(copy.deepcopy(params))
            (wrapped(optimizer) if wrap else optimizer).step(lambda: torch.zeros(()))
    except Exception as error:
        return error
    return None


def test_every_optimizer_of_timm(same: Any) -> None:
    timm = pytest.importorskip("timm.optim", reason="needs evostep[timm]")
    done = set()
    for name in timm.list_optimizers():

        def make(params: Any, name: str = name) -> Optimizer:
            model = nn.ParameterDict({f"p{i}": p for i, p in enumerate(params)})
            return timm.create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.01)

        start = [torch.full((4, 3), 0.5), torch.arange(6.0).reshape(3, 2)]
        with torch.compiler.set_stance("force_eager"):  # some compile their steps
            bare, evolved = (trajectory(make, start, wrap) for wrap in (False, True))
        same(bare, evolved, name)
        if not isinstance(bare[-1], str):
            done.add(name)
    assert {"adamw", "lamb", "lion", "nadamw", "madgrad", "muon"} <= done
    assert len(done) > 30


def test_a_trajectory_that_differs_is_noticed(same: Any) -> None:
    start = [torch.ones(2, 2)]
    one, other = (
        trajectory(lambda params, lr=lr: torch.optim.SGD(params, lr=lr), start, True)
        for lr in (0.1, 0.2)
    )
    assert not isinstance(one[-1], str)
    with pytest.raises(AssertionError):
        same(one, other)
