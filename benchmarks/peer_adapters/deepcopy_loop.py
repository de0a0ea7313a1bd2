"""The loop of "Spartan neural network training" (2020), written anew: a thread pool of deep copies.

Every member is a copy of the model with its own noise; all noise is kept until the update sums it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from peer_adapters.task import Task, score

PACKAGES = ("torch",)
CALLED = "a thread pool, copy.deepcopy and randn_like for each member; noise kept for the update"
NOTES = "as many workers as threads, each of one thread; independent noise, z-scores"
SCORES_PARENT = False


def prepare(task: Task) -> Callable[[], None]:
    torch.set_num_threads(1)  # of each worker; more would fight for the same cores
    pool = ThreadPoolExecutor(task.threads)

    @torch.no_grad()
    def member(_: int) -> tuple[list[Tensor], float]:
        child = copy.deepcopy(task.model)
        noise = []
        for weight in child.parameters():
            eps = torch.randn_like(weight)
            weight.add_(eps, alpha=task.sigma)
            noise.append(eps)
        return noise, score(child, task.batches)

    @torch.no_grad()
    def generation() -> None:
        members = list(pool.map(member, range(task.population)))
        fitness = torch.tensor([value for _, value in members])
        utility = (fitness - fitness.mean()) / fitness.std(correction=0)
        factors = (task.lr / (task.population * task.sigma) * utility).tolist()
        for i, weight in enumerate(task.model.parameters()):
            for (noise, _), factor in zip(members, factors, strict=True):
                weight.add_(noise[i], alpha=factor)

    return generation
