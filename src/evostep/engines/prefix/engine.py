"""Cached prefix: what comes before the first tensor that moves is computed once for all members.

Where a space moves late tensors alone (`Only("fc.*")`, `Only("layer4.*", "fc.*")`), most of a
forward pass is the same for every member. It is recorded while the parent is scored, and replayed
for each member, to the bit; see `replay`. Recordings live as long as the phase, unless a batch or
a weight that does not move has changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

from evostep.engines.base import Engine
from evostep.engines.prefix.session import Session
from evostep.genome.point import Coordinates
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.scores import Outcome
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
    _session: Session = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.cache_bytes < 1:
            raise ValueError(f"cache_bytes must be at least 1, got {self.cache_bytes}")
        object.__setattr__(self, "_session", Session(self.cache_bytes))

    def refusal(
        self,
        members: Sequence[Coordinates],
        workspace: Workspace,
        evaluator: Evaluator,
    ) -> str | None:
        """Return why nothing can be replayed, as far as one can tell without a forward pass."""
        return self._session.refusal(workspace, evaluator)

    def around_parent(
        self, workspace: Workspace, evaluator: Evaluator
    ) -> AbstractContextManager[None]:
        """Record while the parent is scored, what has not been recorded; replay the rest."""
        return self._session.around_parent(workspace, evaluator)

    def score(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> list[Outcome]:
        """Score each in place, the prefix replayed.

        Raises:
            CannotScore: the model cannot be taken; the weights are the center's.
        """
        return self._session.score(members, workspace, evaluator)

    def close(self) -> None:
        """Drop what was recorded: the next phase has a session of its own."""
        self.__post_init__()
