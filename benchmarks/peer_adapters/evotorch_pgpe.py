"""EvoTorch: `SupervisedNE`, its class for this purpose, searched by PGPE with antithetic pairs.

https://docs.evotorch.ai/latest/user_guide/supervised_ne
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from evotorch.algorithms import PGPE
from evotorch.neuroevolution import SupervisedNE
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from peer_adapters.task import Task

PACKAGES = ("evotorch", "ray", "torch")
CALLED = "PGPE(SupervisedNE(...), symmetric, centered ranks, stdev and step size fixed).step()"
NOTES = (
    "common minibatches cover all examples; batches are ready-made, so that collating them, which "
    "is the default, costs nothing; no actors; PGPE estimates the gradient of the stdev, too, "
    "though its learning rate is 0 here"
)
SCORES_PARENT = False


class _AllExamples(SupervisedNE):
    """Scores every network on the same ready-made batches."""

    def _make_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=None)


def prepare(task: Task) -> Callable[[], None]:
    torch.set_num_threads(task.threads_each)
    problem = _AllExamples(
        task.batches,
        task.model,
        F.cross_entropy,
        num_minibatches=len(task.batches),
        common_minibatch=True,
        num_actors=None,
    )
    searcher = PGPE(
        problem,
        popsize=task.population,
        center_learning_rate=task.lr,
        stdev_learning_rate=0.0,
        stdev_init=task.sigma,
        stdev_max_change=None,
        optimizer=None,
        ranking_method="centered",
        center_init=parameters_to_vector(task.model.parameters()).detach(),
        symmetric=True,
    )
    # The first step samples and scores alone; each later one begins with the update.
    return searcher.step
