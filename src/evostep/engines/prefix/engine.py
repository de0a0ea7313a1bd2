"""Cached prefix: what comes before the first tensor that moves is computed once for all members.

Where a space moves late tensors alone (`Only("fc.*")`, `Only("layer4.*", "fc.*")`), most of a
forward pass is the same for every member. It is recorded while the parent is scored, and replayed
for each member, to the bit; see `replay`. Recordings live as long as the phase, unless a batch or
a weight that does not move has changed since.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from evostep.engines.base import Engine
from evostep.engines.prefix.session import PrefixSession
from evostep.scoring.evaluator import Evaluator
from evostep.spaces.workspace import Workspace


@dataclass(frozen=True)
class Prefix(Engine):
    """Scores members in place, without computing again what comes before the first moving tensor.

    The model must do the same in each pass in eval mode, and draw no random numbers before that
    tensor. What is kept is what later layers read: for ``Only("fc.*")`` the inputs of ``fc``. Hooks
    on a layer that is replayed run for each member, those on layers inside it do not.

    Args:
        cache_bytes: how much may be kept. Batches for which there is no room are computed in full
            for each member.

    Raises:
        ValueError: less than one byte.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from evostep import Evolution, Fitness, Only, OpenAIES
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> fitness = Fitness(model, [(torch.randn(5, 4), torch.arange(5) % 3)], "neg-loss")
        >>> strategy = OpenAIES(0.1, population=4)
        >>> search = Evolution(model, strategy, space=Only("2"), engine=Prefix(cache_bytes=2**20))
        >>> len(search.evolve(fitness)[0].scores)
        4
    """

    name: ClassVar[str] = "prefix"
    cache_bytes: int = 2**30

    def __post_init__(self) -> None:
        if self.cache_bytes < 1:
            raise ValueError(f"cache_bytes must be at least 1, got {self.cache_bytes}")

    def open(self, workspace: Workspace, evaluator: Evaluator) -> PrefixSession:
        """Start to work for one phase."""
        return PrefixSession(self, workspace, evaluator, self.cache_bytes)
