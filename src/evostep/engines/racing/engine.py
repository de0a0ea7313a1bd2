"""Racing: a member that cannot win any more is not scored on the rest of the examples.

For strategies of which only the best member counts (`RandomMutation`, `RandomSearch`). All members
see the same examples, some at a time; after each time a bound on paired differences (`bounds`) says
who cannot win any more, and these are dropped. Where a candidate that does not beat the parent is
of no use, the parent competes, too, and nobody may be left.

How the examples are grouped, and which come first, is told in `session`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn
from torch.nn.modules.conv import _ConvNd

from evostep.engines.base import Engine
from evostep.engines.inplace import InPlace
from evostep.engines.racing.session import Session
from evostep.genome.point import Coordinates
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Outcome
from evostep.spaces.workspace import Workspace

_PAYS_FROM = 1000  # examples: of fewer, most members see nearly all
_LARGE = 2**30  # multiplications for a member without convolutions: see benchmarks/racing.py


@dataclass(frozen=True)
class Racing(Engine):
    """Drops members as soon as they cannot win.

    Which member is proposed, and whether it is accepted, is as with full scoring in at least
    `confidence` of the generations. The best member is scored in full; what is told of one that
    was dropped is an estimate, below the best. An example's score must not depend on the examples
    with which it is batched: that is checked on the parent in each phase. Examples are copied into
    new batches, at most a quarter of them at a time.

    Args:
        confidence: in (0, 1).
        first: how much the first look sees: a share of the examples, or a number of them.
        over: how members are scored on some of the examples: in place, or by an engine that takes
            any examples, such as `Vmap` or `SharedProduct`.

    Raises:
        ValueError: a confidence or a share outside (0, 1), a number below 1.

    Example:
        >>> import torch
        >>> from evostep import Evolution, Fitness, RandomMutation
        >>> x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
        >>> model = torch.nn.Linear(4, 4, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> fitness = Fitness(model, [(x, x.argmax(1))], "accuracy")
        >>> search = Evolution(model, RandomMutation(sigma=0.3, children=16), engine=Racing())
        >>> search.evolve(fitness)[0].sample_forwards < 17 * 2000 / 3
        True
    """

    confidence: float = 0.99
    first: float | int = 1 / 16
    over: Engine = field(default_factory=InPlace)
    name: ClassVar[str] = "racing"
    _session: Session = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        whole = isinstance(self.first, int)
        if isinstance(self.first, bool) or not (self.first >= 1 if whole else 0 < self.first < 1):
            raise ValueError(
                f"first must be a share between 0 and 1 or a number of examples, got {self.first!r}"
            )
        session = Session(self.confidence, self.first, self.over)
        object.__setattr__(self, "_session", session)

    def refusal(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> str | None:
        """Return why members cannot race."""
        fitness = evaluator.fitness
        if evaluator.competition is None:
            return "the strategy learns from the score of every member: race RandomMutation"
        if not isinstance(fitness, Fitness):
            return "a bare callable has no examples: give an evostep.Fitness"
        if fitness.gives_per_example is False:
            return f"the metric {fitness.metric!r} has no score for each example"
        if evaluator.calibrates:
            return "calibration= would estimate BatchNorm statistics again at every look"
        if fitness.mode == "train":
            return "in mode='train' an example's score depends on the others in its batch"
        return self.over.refusal(members, workspace, evaluator)

    def pays(self, workspace: Workspace, evaluator: Evaluator) -> bool:
        """Return whether there are examples enough, and members cost more than writing them."""
        fitness = evaluator.fitness
        assert isinstance(fitness, Fitness), "refusal() comes first"
        if evaluator.cost < _PAYS_FROM:
            return False
        if any(isinstance(module, _ConvNd | nn.RNNBase) for module in fitness.model.modules()):
            return True
        matrices = sum(p.numel() for p in fitness.model.parameters() if p.dim() >= 2)
        return matrices * evaluator.cost >= _LARGE

    def around_parent(
        self, workspace: Workspace, evaluator: Evaluator
    ) -> AbstractContextManager[None]:
        """Take note of the margins of the parent's predictions, where accuracy is the metric."""
        return self._session.around_parent(workspace, evaluator)

    def score(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> list[Outcome]:
        """Race the members; the weights are the center's again afterwards, whatever is raised."""
        return self._session.score(members, workspace, evaluator)

    def close(self) -> None:
        """Forget what was noted of the parent; it is checked again in the next phase."""
        self._session.close()
