"""An individual of a population: a model, the optimizer that trains it, and copies of both."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evostep.errors import warn
from evostep.genome.anatomy import clean_names, module_names
from evostep.scoring.isolation import ModuleState

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


@dataclass(frozen=True)
class Individual:
    """A model and its optimizer.

    Attributes:
        model: stays in its place; weights that move in are written into it.
        optimizer: of the species that the individual descends from.
        founder: the number of the individual at the start whose species this one has.
    """

    model: nn.Module
    optimizer: Optimizer
    founder: int

    def parameters(self) -> dict[str, Tensor]:
        """Return name -> live parameter, tied ones once."""
        names = module_names(self.model)
        return {names[id(tensor)]: tensor for tensor in self.model.parameters()}

    def buffers(self) -> dict[str, Tensor]:
        """Return name -> live buffer, of whatever type."""
        pairs = list(self.model.named_buffers())
        names = clean_names([name for name, _ in pairs])
        return {name: buffer for name, (_, buffer) in zip(names, pairs, strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers together."""
        return {**self.parameters(), **self.buffers()}


class Snapshot:
    """What an individual was: weights, buffers, modes and the optimizer's state, to go back to."""

    def __init__(self, individual: Individual) -> None:
        self._individual = individual
        self._parameters = {
            name: tensor.detach().clone() for name, tensor in individual.parameters().items()
        }
        self._rest = ModuleState(individual.model)
        self._optimizer = copy.deepcopy(individual.optimizer.state_dict())

    @torch.no_grad()
    def restore(self) -> None:
        """Make the individual what it was; the optimizer takes over the saved state, so once."""
        for name, tensor in self._individual.parameters().items():
            tensor.copy_(self._parameters[name])
            tensor.grad = None
        self._rest.restore()
        self._individual.optimizer.load_state_dict(self._optimizer)


def transplant(
    source: Optimizer, donor: nn.Module, model: nn.Module, *, keep_state: bool
) -> Optimizer:
    """Make an optimizer like `source`, which trains `donor`, for `model` of the same architecture.

    Args:
        source: any optimizer of `donor`'s parameters; not changed.
        donor: the model that `source` trains.
        model: the model that the new one is to train.
        keep_state: whether momentum and the like come along; hyper-parameters always do.

    Returns:
        An optimizer of the same class. Hooks and learning-rate schedulers stay behind, as in
        every copy of a torch optimizer.

    Example:
        >>> a, b = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> sgd = torch.optim.SGD(a.parameters(), lr=0.5)
        >>> other = transplant(sgd, a, b, keep_state=True)
        >>> other.param_groups[0]["lr"], other.param_groups[0]["params"][0] is b.weight
        (0.5, True)
    """
    # deepcopy takes what the memo already has: the tensors of the new model
    memo: dict[int, Any] = {}
    for theirs, ours in (
        (donor.modules(), model.modules()),
        (donor.parameters(), model.parameters()),
        (donor.buffers(), model.buffers()),
    ):
        memo.update({id(a): b for a, b in zip(theirs, ours, strict=True)})
    if not keep_state:
        memo[id(source.state)] = defaultdict(dict)
    made = copy.deepcopy(source, memo)
    # torch copies defaults, state and groups alone; LBFGS, for one, has attributes of its own.
    # `step` is there only where a scheduler patched the object.
    for name, value in vars(source).items():
        if name not in vars(made) and name != "step":
            vars(made)[name] = copy.deepcopy(value, memo)
    return made


def warn_of_followers(optimizer: Optimizer, place: int) -> None:
    """Warn that a newborn individual's optimizer lacks the hooks and schedulers of its parent's."""
    if "step" in vars(optimizer) or any(getattr(optimizer, hooks, None) for hooks in _HOOKS):
        warn(
            f"individual {place} is born with a copy of an optimizer that has hooks or a "
            "learning-rate scheduler: they stay behind, so attach them in train_epoch instead",
        )
