"""EvoTorch's functional API: ask and tell of PGPE, the population scored by vmap.

https://github.com/nnaisense/evotorch/tree/master/examples/notebooks/Functional_API
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from evotorch.algorithms.functional import pgpe, pgpe_ask, pgpe_tell
from evotorch.neuroevolution.net import make_functional_module
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from peer_adapters.task import Task

PACKAGES = ("evotorch", "torch")
CALLED = "pgpe_ask, torch.func.vmap of make_functional_module, pgpe_tell"
NOTES = "the way of its functional API, not of SupervisedNE; else as evotorch_pgpe"
SCORES_PARENT = False


def prepare(task: Task) -> Callable[[], None]:
    ((inputs, targets),) = task.batches
    network = make_functional_module(task.model)

    def loss(weights: Tensor) -> Tensor:
        return F.cross_entropy(network(weights, inputs), targets)

    losses = vmap(loss)
    state = pgpe(
        center_init=parameters_to_vector(task.model.parameters()).detach(),
        center_learning_rate=task.lr,
        stdev_learning_rate=0.0,
        stdev_init=task.sigma,
        stdev_max_change=None,
        objective_sense="min",
        ranking_method="centered",
        optimizer="sgd",
    )

    @torch.no_grad()
    def generation() -> None:
        nonlocal state
        population = pgpe_ask(state, popsize=task.population)
        state = pgpe_tell(state, population, losses(population))

    return generation
