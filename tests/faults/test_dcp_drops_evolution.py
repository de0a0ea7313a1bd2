"""torch.distributed.checkpoint takes evolution's state along, or says that it did not."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.nn import functional as F

from evostep import CMAES, SNES, Evolved, Fitness, OpenAIES, RandomSearch

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def make(strategy: Any = None, groups: int = 1) -> tuple[nn.Sequential, Evolved]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    named = list(model.named_parameters())
    parts = [named] if groups == 1 else [named[:2], named[2:]]
    base = torch.optim.Adam([{"params": part} for part in parts])
    strategy = strategy or OpenAIES(0.02, lr=0.004, population=4)
    return model, Evolved(base, strategy, model=model)


def train(model: nn.Module, optimizer: Evolved) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()


def ran(*args: Any) -> tuple[nn.Sequential, Evolved]:
    model, optimizer = make(*args)
    train(model, optimizer)
    optimizer.evolve(Fitness(model, [(X, Y)], "neg-loss"), 3)
    return model, optimizer


def assert_goes_on(one: tuple[Any, Evolved], other: tuple[Any, Evolved]) -> None:
    assert other[1].evolution.generation == 3
    for model, optimizer in (one, other):
        train(model, optimizer)
        optimizer.evolve(Fitness(model, [(X, Y)], "neg-loss"), 2)
    for p, q in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(p, q)


STRATEGIES = [None, SNES(0.02, population=4), RandomSearch(0.02, population=4), CMAES(0.02)]


@pytest.mark.parametrize(
    ("strategy", "full"),
    list(zip(STRATEGIES, (False, True, False, True), strict=True)),
    ids=["es", "snes", "search", "cma"],
)
def test_get_and_set_state_dict(strategy: Any, full: bool) -> None:
    if isinstance(strategy, CMAES):
        pytest.importorskip("cma")
    run = ran(strategy, 2)
    options = StateDictOptions(full_state_dict=full, cpu_offload=full)
    states = copy.deepcopy(get_state_dict(*run, options=options))  # they are the live tensors
    fresh = make(strategy, 2)
    set_state_dict(*fresh, model_state_dict=states[0], optim_state_dict=states[1], options=options)
    assert "evolution" not in fresh[1].param_groups[0]
    assert_goes_on(run, fresh)


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch")
@pytest.mark.filterwarnings("ignore:.*single process")
def test_on_disk(tmp_path: Path) -> None:
    run = ran()
    states = get_state_dict(*run)
    dcp.save({"model": states[0], "optimizer": states[1]}, checkpoint_id=tmp_path)
    fresh = make()
    wanted = get_state_dict(*fresh)
    saved = {"model": wanted[0], "optimizer": wanted[1]}
    dcp.load(saved, checkpoint_id=tmp_path)
    set_state_dict(*fresh, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    assert_goes_on(run, fresh)


def test_a_bare_optimizer_reads_such_a_state_too() -> None:
    model, optimizer = ran()
    state = get_optimizer_state_dict(model, optimizer)
    twin, other = make()
    set_optimizer_state_dict(twin, other.base, state)
    assert len(other.base.state) == 4


@pytest.mark.parametrize("flat", [False, True], ids=["of a bare optimizer", "flattened"])
def test_where_it_is_lost_a_warning_says_so(flat: bool) -> None:
    model, optimizer = ran()
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = get_optimizer_state_dict(model, optimizer if flat else optimizer.base, options=options)
    twin, fresh = make()
    with pytest.warns(UserWarning, match=r"without evolution.*save and load optimizer.evolution"):
        set_optimizer_state_dict(twin, fresh, state, options=options)
    assert fresh.evolution.generation == 0


def test_an_ordinary_state_is_as_ever() -> None:
    _, optimizer = ran()
    state = optimizer.state_dict()
    assert "evolution" not in state["param_groups"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()[1].load_state_dict(optimizer.base.state_dict())
