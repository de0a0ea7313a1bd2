from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from evostep import Evolved, OpenAIES
from evostep.integrations import evolved, find_evolved, unwrapped


@pytest.fixture
def inner(strategy: OpenAIES) -> Evolved:
    return Evolved(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), strategy)


def wrapper(module: str, **held: Any) -> Any:
    made = type("Wrapper", (), {"__module__": module})()
    vars(made).update(held)
    return made


def test_through_several_wrappers_of_frameworks(inner: Evolved) -> None:
    once = wrapper("accelerate.optimizer", optimizer=inner)
    assert find_evolved(wrapper("lightning.pytorch.core.optimizer", _optimizer=once)) is inner


def test_a_subclass_is_itself(strategy: OpenAIES) -> None:
    class Own(Evolved):
        pass

    made = Own(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), strategy)
    assert find_evolved(made) is made


@pytest.mark.parametrize("kind", ["bare", "lookahead", "empty"])
def test_what_holds_none_or_may_keep_copies_is_refused(inner: Evolved, kind: str) -> None:
    given = {
        "bare": inner.base,
        "lookahead": wrapper("somewhere.lookahead", optimizer=inner),
        "empty": wrapper("accelerate.optimizer", optimizer=inner.base),
    }[kind]
    with pytest.raises(ValueError, match=r"holds no evostep.Evolved: wrap the optimizer before"):
        find_evolved(given)


def test_what_makes_an_optimizer_can_be_pickled(strategy: OpenAIES) -> None:
    make = pickle.loads(pickle.dumps(evolved(torch.optim.Adam, strategy, momentum="reset")))
    made = make(nn.Linear(2, 2).parameters(), lr=0.5)
    assert isinstance(made.base, torch.optim.Adam)
    assert made.defaults["lr"] == 0.5


def test_a_compiled_model_in_a_wrapper() -> None:
    model = nn.Linear(2, 2)
    compiled = torch.compile(model, backend="eager")
    assert unwrapped(nn.DataParallel(compiled)) is model
    assert unwrapped(model) is model
