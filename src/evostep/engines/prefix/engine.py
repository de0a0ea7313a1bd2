"""Cached prefix: what comes before the first tensor that moves is computed once for all members.

Where a space moves late tensors alone (`Only("fc.*")`, `Only("layer4.*", "fc.*")`), most of a
forward pass is the same for every member. It is recorded while the parent is scored, and replayed
for each member, to the bit; see `replay`. Recordings live as long as the phase, unless a batch or
a weight that does not move has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from evostep.engines.base import CannotScore, Engine
from evostep.engines.inplace import InPlace
from evostep.engines.prefix.layout import Layout
from evostep.engines.prefix.passes import Cache, Passes
from evostep.engines.stacked import why_opaque
from evostep.genome.point import Coordinates
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.fitness import Fitness
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
    _cache: Cache = field(default_factory=Cache, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.cache_bytes < 1:
            raise ValueError(f"cache_bytes must be at least 1, got {self.cache_bytes}")

    def refusal(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> str | None:
        """Return why nothing can be replayed, as far as one can tell without a forward pass."""
        fitness = evaluator.fitness
        if not isinstance(fitness, Fitness):
            return "a bare callable shows no forward pass: give an evostep.Fitness"
        if evaluator.calibrates:
            return "calibration= estimates the statistics of all layers anew for each member"
        if fitness.mode == "train":
            return "in mode='train' dropout and batch statistics are anew for each member"
        reason = why_opaque(fitness.model) or self._cache.given_up
        return reason or Layout(fitness.model, workspace.live).refusal()

    @contextmanager
    def around_parent(self, workspace: Workspace, evaluator: Evaluator) -> Iterator[None]:
        """Record while the parent is scored, what has not been recorded; replay the rest."""
        if self.refusal((), workspace, evaluator) is not None:
            yield
            return
        with self._passes(workspace, evaluator).installed(parent=True):
            yield

    def score(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> list[Outcome]:
        """Score each in place, the prefix replayed.

        Raises:
            CannotScore: the model cannot be taken; the weights are the center's.
        """
        refusal = self.refusal(members, workspace, evaluator)
        if refusal is not None:
            raise CannotScore(refusal)
        passes = self._prepare(workspace, evaluator)
        with passes.installed():
            outcomes = InPlace().score(members, workspace, evaluator)
        if self._cache.failure is not None:
            raise self._cache.give_up()
        return outcomes

    def close(self) -> None:
        """Drop what was recorded."""
        self._cache.reset()

    def _passes(self, workspace: Workspace, evaluator: Evaluator) -> Passes:
        assert isinstance(evaluator.fitness, Fitness), "refusal() comes first"
        assert evaluator.examples is not None, "begin() comes first"
        layout = Layout(evaluator.fitness.model, workspace.live)
        self._cache.settle((evaluator.fitness, layout.identity), layout.contents())
        return Passes(evaluator.fitness, evaluator.examples, layout, self._cache, self.cache_bytes)

    def _prepare(self, workspace: Workspace, evaluator: Evaluator) -> Passes:
        """Record what was not while the parent was scored; see that a replay gives the same."""
        for chance in (1, 2):  # a first pass may fill caches of the model's own, such as masks
            passes = self._passes(workspace, evaluator)
            if self._cache.failure is None and not passes.complete:
                with passes.installed(parent=True):
                    evaluator()
            if self._cache.failure is None:
                passes.verify(evaluator)
            if self._cache.failure is None:
                break
            if chance == 1:
                self._cache.drop()
        if self._cache.failure is not None:
            raise self._cache.give_up()
        return passes
