"""Parameters that are sharded over processes (DTensor) are refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from evostep import ESGD, Evolution, Evolved, Fitness, LowRank, OpenAIES, integrations


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[nn.Module]:
    """A model as `fully_shard` leaves it, in a group of one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        yield model
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_sharded_weights_are_refused_and_stay(sharded: Any) -> None:
    model = sharded
    before = [p.full_tensor().clone() for p in model.parameters()]
    fitness = Fitness(model, [(torch.randn(6, 4), torch.arange(6) % 3)], "neg-loss")
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for evolve in (
        lambda: Evolution(model, OpenAIES(0.1, population=4)).evolve(fitness),
        lambda: Evolution(model, OpenAIES(0.1, population=4, noise=LowRank(1))).evolve(fitness),
        lambda: Evolved(base, OpenAIES(0.1, population=4)).evolve(fitness),
        lambda: integrations.evolve(Evolved(base, OpenAIES(0.1, population=4)), fitness),
        lambda: ESGD([(model, base)], fitness, offspring=1, parents=1, elite=1).evolve(),
    ):
        with pytest.raises(ValueError, match=r"'.*' is a DTensor .*: evolve an unsharded copy"):
            evolve()
    for p, whole in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.full_tensor(), whole)
