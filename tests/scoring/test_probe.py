"""The probe: the network as a function of coordinates, without a trace, each pass counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import Fitness, Only
from evostep.genome.point import Tensors
from evostep.genome.slots import slots_of_module
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.isolation import ModuleState
from evostep.scoring.probe import Probe
from evostep.spaces.workspace import Workspace

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def opened(space: Any, **options: Any) -> tuple[nn.Sequential, Probe, Evaluator]:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    slots = slots_of_module(model)
    live = {name: slots.tensors[name] for name in space.touched(slots)}
    evaluator = Evaluator(Fitness(model, BATCHES, **options), ModuleState(model))
    workspace = Workspace(space, space.open(slots), live)
    return model, Probe(workspace, evaluator, evaluator.round(0, 0)), evaluator


def in_eval_mode(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        out: Tensor = model(x)
    model.train()
    return out


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_are_the_networks_in_eval_mode_at_the_coordinates(mode: Any) -> None:
    model, probe, _ = opened(Only("3"), mode=mode)
    batches = probe.inputs(20)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), X)
    center = {name: p.detach().clone() for name, p in model[3].named_parameters(prefix="3")}
    found = probe.outputs(Tensors(center), batches)
    torch.testing.assert_close(found, in_eval_mode(model, X))
    doubled = {name: 2 * tensor for name, tensor in center.items()}
    torch.testing.assert_close(probe.outputs(Tensors(doubled), batches), 2 * found)


def test_as_a_function_it_takes_the_coordinates_that_differ_from_the_center() -> None:
    model, probe, _ = opened(Only("3"))
    shift = torch.tensor([1.0, 2.0, 3.0])
    with probe.measuring(), torch.no_grad():
        found = probe.function({"3.bias": model[3].bias + shift}, X)
    torch.testing.assert_close(found, in_eval_mode(model, X) + shift)


def test_measuring_leaves_no_trace_whatever_is_raised() -> None:
    model, probe, _ = opened(Only("3", "0"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = probe.inputs(20)
    zeros = {name: torch.zeros_like(value) for name, value in before.items()}
    probe.outputs(Tensors(zeros), batches)
    with pytest.raises(KeyError):
        probe.outputs(Tensors({"0.weight": zeros["0.weight"]}), batches)  # stops half way
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_what_is_measured_is_counted_a_backward_as_two_more() -> None:
    model, probe, evaluator = opened(Only("3"))
    batches = probe.inputs(7)
    assert evaluator.spent == 0
    probe.outputs(Tensors({n: p for n, p in model.named_parameters() if n[0] == "3"}), batches)
    assert evaluator.spent == 7
    probe.count(forward=2, backward=5)
    assert evaluator.spent == 7 + 2 + 10
