"""torcheggroll: `TorchEggrollES` with rank 1, which scores its population by vmap.

https://github.com/ai4flab/torcheggroll
"""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import functional as F
from torcheggroll import TorchEggrollES

from peer_adapters.task import Task

PACKAGES = ("torcheggroll", "torch")
CALLED = "TorchEggrollES(rank=1, antithetic=True).step(inputs, F.cross_entropy, targets)"
NOTES = "each A B^T is built, and the weights of all members are held at once; z-scores"
SCORES_PARENT = False


def prepare(task: Task) -> Callable[[], None]:
    ((inputs, targets),) = task.batches
    trainer = TorchEggrollES(
        task.model, pop_size=task.population, sigma=task.sigma, lr=task.lr, rank=1, antithetic=True
    )

    def generation() -> None:
        trainer.step(inputs, F.cross_entropy, targets)

    return generation
