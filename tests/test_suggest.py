"""suggest_sigma: on a network that is really trained, 5% means 5%, and nothing is touched."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Only, suggest_sigma
from evostep.genome.slots import slots_of_module
from evostep.spaces.weights import AllWeights
from evostep.strategies.random_mutation import RandomMutation
from evostep.suggest import SIGMAS, SigmaSuggestion, _interpolate


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> nn.Sequential:
    """A small network with batch norm and dropout, on 1,000 digits; about 95% on the others."""
    torch.manual_seed(0)
    x, y = digits[0][:1000], digits[1][:1000]
    model = nn.Sequential(
        nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        for batch in torch.randperm(1000).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model


def held_out(digits: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(digits[0][1000:].split(256), digits[1][1000:].split(256), strict=True))


def really_changed(model: nn.Module, x: Tensor, sigma: float, scale: Any, seed: int) -> float:
    """The share of predictions that one draw changes, by hand."""
    space = AllWeights()
    slots = slots_of_module(model)
    genome = space.open(slots)
    member = RandomMutation(sigma, 1, scale=scale).member(genome, {}, 0, 0, seed)
    model.eval()
    with torch.no_grad():
        before = model(x).argmax(1)
        weights = {name: member.tensor(name) for name in slots.tensors}
        after = torch.func.functional_call(model, weights, (x,)).argmax(1)
    return float((before != after).double().mean())


@pytest.mark.parametrize("scale", ["rms", "absolute"])
def test_the_sigma_at_which_a_share_changes_really_changes_it(
    trained: nn.Sequential, digits: tuple[Tensor, Tensor], scale: Any
) -> None:
    for share in (0.05, 0.2):
        found = suggest_sigma(trained, held_out(digits), share=share, scale=scale)
        fresh = [
            really_changed(trained, digits[0][1000:], found.sigma, scale, seed)
            for seed in range(100, 116)
        ]
        assert float(np.mean(fresh)) == pytest.approx(share, rel=0.35)


def test_the_share_grows_with_sigma(trained: nn.Sequential, digits: tuple[Tensor, Tensor]) -> None:
    found = suggest_sigma(trained, held_out(digits), draws=8)
    rises = np.diff(found.changed)
    assert (rises >= -0.002).all()  # up to the luck of the draws
    assert found.changed[0] < 0.005
    assert found.changed[-1] >= 0.5
    assert all(c < 0.5 for c in found.changed[:-1]), "it stops at the first half"
    assert found.sigmas == SIGMAS[: len(found.sigmas)]
    assert len(found.spread) == len(found.changed)
    assert 0 < max(found.spread) < 0.3
    i = next(i for i, c in enumerate(found.changed) if c >= 0.05)
    assert found.sigmas[i - 1] < found.sigma <= found.sigmas[i]


def test_the_model_is_left_untouched(trained: nn.Sequential, digits: tuple[Tensor, Tensor]) -> None:
    trained.train()
    trained[1].eval()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    modes = [module.training for module in trained.modules()]
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    suggest_sigma(trained, held_out(digits), draws=1)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert [module.training for module in trained.modules()] == modes
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]
    assert np.random.get_state()[1].tolist() == streams[2]
    assert all(p.grad is None and p.requires_grad for p in trained.parameters())


def test_a_module_that_keeps_state_when_scored_is_left_untouched() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return super().forward(x) * (1 + self.seen)

    model = Counting()
    suggest_sigma(model, [(torch.randn(50, 6), torch.zeros(50).long())], draws=1)
    assert float(model.seen) == 0.0


def test_an_interrupt_leaves_the_model_untouched(
    trained: nn.Sequential, digits: tuple[Tensor, Tensor]
) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    calls: list[None] = []

    def interrupt(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 9:
            raise KeyboardInterrupt

    handle = trained.register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            suggest_sigma(trained, held_out(digits))
    finally:
        handle.remove()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_it_is_the_same_each_time_and_another_with_another_seed(
    trained: nn.Sequential, digits: tuple[Tensor, Tensor]
) -> None:
    batches = held_out(digits)
    first = suggest_sigma(trained, batches, draws=1)
    torch.rand(3)
    assert suggest_sigma(trained, batches, draws=1) == first
    assert suggest_sigma(trained, batches, draws=1, seed=1).changed != first.changed


def test_fewer_weights_bear_more_noise(
    trained: nn.Sequential, digits: tuple[Tensor, Tensor]
) -> None:
    batches = held_out(digits)
    everything = suggest_sigma(trained, batches)
    with pytest.warns(UserWarning, match="5% change at no sigma up to 1"):
        bias = suggest_sigma(trained, batches, space=Only("4.bias"))
    assert bias.sigma > 1.5 * everything.sigma


def test_uniform_noise_bears_a_larger_sigma(
    trained: nn.Sequential, digits: tuple[Tensor, Tensor]
) -> None:
    batches = held_out(digits)
    ratio = (
        suggest_sigma(trained, batches, noise="uniform").sigma
        / suggest_sigma(trained, batches).sigma
    )
    assert ratio == pytest.approx(math.sqrt(3), rel=0.25)  # its standard deviation is sigma/sqrt 3


def test_several_labels_are_read_as_labels() -> None:
    """By argmax a network whose label 0 always wins would never change."""
    x = torch.randn(400, 6)
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.bias[0] = 50.0
    labels = [(x, torch.zeros(400, 3))]
    found = suggest_sigma(model, labels, sigmas=(0.01, 0.1, 0.5), space=Only("weight"))
    assert found.changed[-1] > 0.03


def test_one_binary_label() -> None:
    x = torch.randn(400, 6)
    for outputs in (nn.Linear(6, 1), nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))):
        found = suggest_sigma(outputs, [(x, torch.zeros(400))], sigmas=(0.01, 0.1, 0.5))
        assert found.changed[0] < found.changed[-1]
        assert found.changed[-1] > 0.02


@pytest.mark.parametrize(
    ("sigmas", "changed", "share", "expected"),
    [
        ((0.01, 0.1, 1.0), (0.0, 0.05, 0.4), 0.05, 0.1),
        ((0.01, 0.1), (0.0, 0.1), 0.05, math.sqrt(0.001)),
        ((0.01, 0.1), (0.2, 0.3), 0.05, 0.01),  # reached before the first
        ((0.01, 0.1), (0.0, 0.01), 0.05, 0.1),  # reached nowhere
        ((0.01, 0.1, 1.0), (0.04, 0.03, 0.06), 0.05, 10 ** (-1 + 2 / 3)),  # a dip by luck
    ],
)
def test_interpolation(
    sigmas: tuple[float, ...], changed: tuple[float, ...], share: float, expected: float
) -> None:
    assert _interpolate(sigmas, changed, share) == pytest.approx(expected)


def test_it_prints_a_table() -> None:
    text = str(SigmaSuggestion(0.02, 0.05, (0.01, 0.1), (0.013, 0.25), (0.001, 0.02)))
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["0.01", "1.30%", "±", "0.10%"]
    assert lines[-1] == "5% change at sigma = 0.02"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 0.0}, "share must lie between 0 and 1, got 0"),
        ({"share": 1.0}, "share must lie between 0 and 1, got 1"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"sigmas": ()}, "positive and rising"),
        ({"sigmas": (0.1, 0.01)}, r"positive and rising, got \[0.1, 0.01\]"),
        ({"sigmas": (0.0, 0.01)}, "positive and rising"),
        ({"scale": "std"}, "scale must be one of.*'std'"),
        ({"noise": "levy"}, "noise must be one of.*'levy'"),
        ({"space": Only("5")}, "'5' matches no parameter"),
    ],
)
def test_refused(
    trained: nn.Sequential, digits: tuple[Tensor, Tensor], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        suggest_sigma(trained, held_out(digits), **options)
