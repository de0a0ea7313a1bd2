"""eggroll-trainer: `EGGROLLTrainer` with rank 1, as its readme calls it.

https://github.com/JacobFV/eggroll-trainer
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from eggroll_trainer import EGGROLLTrainer

from peer_adapters.task import Task, score

PACKAGES = ("eggroll-trainer", "torch")
CALLED = "EGGROLLTrainer(rank=1, noise_reuse=2).step(), under no_grad"
NOTES = (
    "0.1.0 adds a member's noise to the member before it, not to the center: of its antithetic "
    "pairs every second one is the center itself; each A B^T is built; z-scores"
)
SCORES_PARENT = False


def prepare(task: Task) -> Callable[[], None]:
    torch.set_num_threads(task.threads_each)
    trainer = EGGROLLTrainer(
        task.model.parameters(),
        model=task.model,
        fitness_fn=lambda model: score(model, task.batches),
        population_size=task.population,
        learning_rate=task.lr,
        sigma=task.sigma,
        rank=1,
        noise_reuse=2,  # its name for antithetic pairs
        seed=0,
    )

    def generation() -> None:
        with torch.no_grad():  # else it records a graph of each perturbation
            trainer.step()

    return generation
