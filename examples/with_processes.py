"""Evolution under DistributedDataParallel: the processes share the members of each generation.

    torchrun --nproc-per-node 2 examples/with_processes.py
    python examples/with_processes.py

The second command starts the two processes by itself.
"""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
from digits import network, parts, tell
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import evostep
from evostep.integrations import evolve, unwrapped


def train() -> None:
    """Train on a half of the examples in each process, evolve after each epoch."""
    train, for_evolution, _ = parts()
    model = DistributedDataParallel(network())
    base = torch.optim.SGD(model.module.named_parameters(), lr=0.1, momentum=0.9)
    optimizer = evostep.Evolved(base, evostep.OpenAIES(sigma=0.05, lr=0.03, population=16))
    batches = DataLoader(for_evolution, 640)
    fitness = evostep.Fitness(unwrapped(model), batches, "worst-class-recall")
    sampler = DistributedSampler(train)

    for epoch in range(4):
        sampler.set_epoch(epoch)
        for inputs, targets in DataLoader(train, 32, sampler=sampler):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        evolve(optimizer, fitness, 5)

    sums = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(sums, sum(p.detach().sum() for p in model.parameters()))
    if dist.get_rank() == 0:
        alike = all(torch.equal(sums[0], other) for other in sums)
        print(f"{len(sums)} processes hold {'the same weights' if alike else 'OTHER WEIGHTS'}")
        tell(optimizer.history)


def begin(rank: int, store: str) -> None:
    """Join the group as one of two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    train()
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun's
        dist.init_process_group("gloo")
        train()
        dist.destroy_process_group()
    else:
        store = os.path.join(tempfile.mkdtemp(), "store")  # noqa: PTH118
        torch.multiprocessing.spawn(begin, (store,), nprocs=2)
