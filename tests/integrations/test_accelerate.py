"""Accelerate hides `evolve` of the optimizer that it wraps; `integrations.evolve` reaches it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from evostep import Evolved, Fitness
from evostep.integrations import evolve, find_evolved

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    accelerate = pytest.importorskip("accelerate", reason="needs evostep[accelerate]")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_twenty_steps_and_twenty_are_forty(
    precision: str,
    make_network: Any,
    strategy: Any,
    digits: Any,
    watch: Any,
    same: Any,
    tmp_path: Path,
) -> None:
    """With gradients of two batches accumulated, and a scheduler."""

    def begin() -> Any:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=2, mixed_precision=precision
        )
        net = make_network()
        base = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
        optimizer = Evolved(base, strategy)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.9)
        loader = DataLoader(digits.train, 16)
        return accelerator, *accelerator.prepare(net, optimizer, loader, scheduler)

    def go_on(
        accelerator: Any, model: Any, optimizer: Any, loader: Any, scheduler: Any, epochs: int
    ) -> None:
        net = accelerator.unwrap_model(model)
        fitness = Fitness(net, [digits.other.tensors], "neg-loss")
        for _ in range(epochs):
            for inputs, targets in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(F.cross_entropy(model(inputs), targets))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
            evolve(optimizer, fitness, 3, trackers=[watch])

    whole = begin()
    watch.begin(find_evolved(whole[2]))
    go_on(*whole, 4)
    assert watch.moved > 0
    half = begin()
    go_on(*half, 2)
    half[0].save_state(str(tmp_path))
    rest = begin()
    rest[0].load_state(str(tmp_path))
    go_on(*rest, 2)
    same(whole[1].state_dict(), rest[1].state_dict())
    same(whole[2].state_dict(), rest[2].state_dict())
    assert find_evolved(rest[2]).evolution.generation == 12
