"""Merged networks: what coefficients mean, and task arithmetic by grid."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from evostep.lab.merging.model import Merged, merged_cnn


def three_networks() -> tuple[Merged, list[nn.Module]]:
    """Return a merged network, and the start and the experts that it holds."""
    torch.manual_seed(0)
    merged = merged_cnn(1, 10)
    start = copy.deepcopy(merged.net)
    experts = [copy.deepcopy(start) for _ in range(merged.experts)]
    with torch.no_grad():
        for expert in experts:
            for parameter in expert.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    merged.learn([expert.state_dict() for expert in experts])
    return merged, [start, *experts]


def set_all(merged: Merged, values: list[float]) -> None:
    with torch.no_grad():
        for c in merged.coefficients.values():
            c.copy_(torch.tensor(values))


def test_coefficients_of_0_are_the_start_and_a_unit_vector_is_an_expert() -> None:
    merged, networks = three_networks()
    images = torch.randn(4, 1, 8, 8)
    for values, network in zip(([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]), networks, strict=True):
        set_all(merged, values)
        assert torch.allclose(merged(images), network(images), atol=1e-5)


def test_it_begins_as_the_uniform_average_of_the_experts() -> None:
    merged, (_, *experts) = three_networks()
    for name, weight in merged.weights().items():
        mean = torch.stack([expert.state_dict()[name] for expert in experts]).mean(0)
        assert torch.allclose(weight, mean, atol=1e-6), name


def test_a_layer_has_coefficients_of_its_own() -> None:
    merged, (start, first, _) = three_networks()
    set_all(merged, [0.0, 0.0])
    with torch.no_grad():
        merged.coefficients["conv2"].copy_(torch.tensor([1.0, 0.0]))
    expected = {**start.state_dict(), "conv2.weight": first.state_dict()["conv2.weight"]}
    for name, weight in merged.weights().items():
        assert torch.allclose(weight, expected[name], atol=1e-6), name


def test_gradients_reach_the_coefficients_and_the_start() -> None:
    merged, _ = three_networks()
    merged(torch.randn(4, 1, 8, 8)).square().sum().backward()
    for name, parameter in merged.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_experts_are_saved_with_the_weights() -> None:
    merged, _ = three_networks()
    set_all(merged, [0.3, 0.9])
    again = merged_cnn(1, 10)
    again.load_state_dict(merged.state_dict())
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(again(images), merged(images))


def test_task_arithmetic_takes_the_best_of_its_grid_for_all_layers() -> None:
    merged, _ = three_networks()
    asked: list[float] = []

    def score() -> float:
        values: list[Tensor] = list(merged.coefficients.values())
        assert all(torch.equal(c, values[0][:1].expand(2)) for c in values)
        asked.append(float(values[0][0].detach()))
        return -abs(asked[-1] - 0.31)

    merged.tune(score)
    assert len(asked) == merged.tunings == len(set(asked))
    assert min(asked) > 0
    assert max(asked) == 1
    assert all(abs(float(c.detach()[0]) - 0.3) < 1e-6 for c in merged.coefficients.values())
