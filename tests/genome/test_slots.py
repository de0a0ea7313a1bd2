"""Names: fixed, free of wrappers, tied weights once, and never two for one."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from evostep.genome.anatomy import clean_names, module_names
from evostep.genome.slots import (
    renamed,
    slots_of_groups,
    slots_of_module,
    slots_of_tensors,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]


class Wrapper(nn.Module):
    """What DataParallel and its like do to names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Compiled(nn.Module):
    """What torch.compile does to names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fc.weight", "fc.bias"], ["fc.weight", "fc.bias"]),
        (["module.fc.weight", "module.fc.bias"], ["fc.weight", "fc.bias"]),
        (["module._orig_mod.fc.weight"], ["fc.weight"]),
        (["_orig_mod.module.fc.weight"], ["fc.weight"]),
        (["module.module.fc.weight"], ["fc.weight"]),
        (["layer._orig_mod.fc.weight", "head.weight"], ["layer.fc.weight", "head.weight"]),
        (["_fsdp_wrapped_module.fc.weight"], ["fc.weight"]),
        # a submodule that happens to be called `module` is no wrapper
        (["module.weight", "head.weight"], ["module.weight", "head.weight"]),
        # a name that merely contains the word is its own
        (["my_orig_mod.weight", "my.weight"], ["my_orig_mod.weight", "my.weight"]),
        # never two names in one
        (["_orig_mod.weight", "weight"], ["_orig_mod.weight", "weight"]),
        ([], []),
    ],
)
def test_wrappers_are_stripped(names: list[str], expected: list[str]) -> None:
    assert clean_names(names) == expected


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        Wrapper,
        Compiled,
        lambda m: Wrapper(Compiled(m)),
        lambda m: Compiled(Wrapper(m)),
        nn.DataParallel,
        torch.compile,
    ],
)
def test_a_wrapped_model_has_the_names_of_the_bare_one(wrap: Any) -> None:
    model = network()
    slots = slots_of_module(wrap(model))
    assert list(slots.tensors) == NAMES
    assert list(slots.buffers) == ["1.running_mean", "1.running_var"]
    assert all(slots.tensors[name] is p for name, p in model.named_parameters())


def test_tied_weights_count_once_under_their_first_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(slots_of_module(model).tensors) == ["0.weight", "0.bias", "1.bias"]
    assert list(module_names(model).values()) == ["0.weight", "0.bias", "1.bias"]


def test_a_module_gives_its_parameters_and_floating_point_buffers() -> None:
    model = network()
    slots = slots_of_module(model)
    assert slots.named
    assert list(slots.tensors) == NAMES
    assert slots.owners["0.weight"] is nn.Linear
    assert slots.owners["1.running_var"] is nn.BatchNorm1d
    assert "1.num_batches_tracked" not in slots.buffers  # integers do not move
    assert slots.buffers["1.running_mean"] is model[1].running_mean


def test_quantised_parameters_are_left_alone() -> None:
    model = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    assert list(slots_of_module(model).tensors) == ["weight", "bias"]


# Groups of an optimizer


def test_names_come_from_named_parameters_where_the_optimizer_was_made_of_them() -> None:
    model = Wrapper(network())
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    slots = slots_of_groups(optimizer.param_groups, None)
    assert slots.named
    assert list(slots.tensors) == NAMES


def test_names_come_from_the_model_otherwise_in_the_optimizers_order() -> None:
    model = network()
    groups = [{"params": model[2].parameters()}, {"params": model[0].parameters(), "sigma": 0.5}]
    slots = slots_of_groups(torch.optim.SGD(groups, lr=0.1).param_groups, model)
    assert list(slots.tensors) == ["2.weight", "2.bias", "0.weight", "0.bias"]
    assert [slots.sigma[name] for name in slots.tensors] == [None, None, 0.5, 0.5]
    assert slots.tensors["0.weight"] is model[0].weight
    assert "1.running_mean" in slots.buffers


def test_names_are_positions_where_nothing_else_is_known() -> None:
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    slots = slots_of_groups(torch.optim.SGD(groups, lr=0.1).param_groups, None)
    assert not slots.named
    assert list(slots.tensors) == ["group0.0", "group0.1", "group1.0", "group1.1"]


def test_two_networks_with_the_same_names_need_telling_apart() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": list(m.named_parameters())} for m in (a, b)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(ValueError, match=r"two parameters.*'weight'.*model=.*prefix"):
        slots_of_groups(optimizer.param_groups, None)
    by_model = slots_of_groups(optimizer.param_groups, nn.ModuleList([a, b]))
    assert list(by_model.tensors) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    prefixed = chain(a.named_parameters(prefix="a"), b.named_parameters(prefix="b"))
    by_prefix = slots_of_groups(torch.optim.SGD(prefixed, lr=0.1).param_groups, None)
    assert list(by_prefix.tensors) == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_a_parameter_of_another_model_is_refused() -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"parameter 0.*\(4, 3\).*not one of the model's"):
        slots_of_groups(optimizer.param_groups, network())


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_a_groups_sigma_must_be_a_number_from_zero(sigma: float) -> None:
    groups = [{"params": network().parameters(), "sigma": sigma}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(ValueError, match=f"sigma must be finite and >= 0, got {sigma}"):
        slots_of_groups(optimizer.param_groups, None)


def test_a_lazy_layer_is_named_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"'0.weight' of a lazy layer.*send a batch") as caught:
        slots_of_module(nn.Sequential(nn.LazyLinear(3)))
    assert "\n" not in str(caught.value)


# Named tensors


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, dtype=torch.int64), "'w' is of dtype torch.int64: only floating-point"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "'w' is of dtype torch.float8_e4m3fn"),
        ([1.0, 2.0], "'w' is of list"),
    ],
)
def test_only_floating_point_tensors_evolve(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        slots_of_tensors({"w": value})


def test_tensors_keep_their_names_and_identity() -> None:
    w = torch.zeros(2)
    slots = slots_of_tensors({"module.w": w})
    assert slots.tensors["module.w"] is w
    assert slots.named


# Names of a saved run


def test_positions_take_the_names_of_a_saved_run() -> None:
    model = network()
    groups = [{"params": model.parameters(), "sigma": 0.25}]
    slots = slots_of_groups(torch.optim.SGD(groups, lr=0.1).param_groups, None)
    again = renamed(slots, NAMES)
    assert again.named
    assert list(again.tensors) == NAMES
    assert all(again.tensors[name] is p for name, p in model.named_parameters())
    assert set(again.sigma.values()) == {0.25}


def test_another_number_of_names_is_refused() -> None:
    slots = slots_of_groups(torch.optim.SGD(network().parameters(), lr=0.1).param_groups, None)
    with pytest.raises(ValueError, match="moved 2 tensors, this one has 6"):
        renamed(slots, ["a", "b"])
