"""Racing: a member that cannot win any more is not scored on the rest of the examples.

For strategies of which only the best member counts (`RandomMutation`, `RandomSearch`). All members
see the same examples, some at a time; after each time a bound on paired differences (`bounds`) says
who cannot win any more, and these are dropped. Where a candidate that does not beat the parent is
of no use, the parent competes, too, and nobody may be left.

How the examples are grouped, and which come first, is told in `session`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from evostep.engines.base import Engine
from evostep.engines.inplace import InPlace
from evostep.engines.racing.session import Races
from evostep.scoring.evaluator import Evaluator
from evostep.spaces.workspace import Workspace


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
        >>> search = Evolution(model, RandomMutation(sigma=0.3, population=16), engine=Racing())
        >>> search.evolve(fitness)[0].sample_forwards < 17 * 2000 / 3
        True
    """

    confidence: float = 0.99
    first: float | int = 1 / 16
    over: Engine = field(default_factory=InPlace)
    name: ClassVar[str] = "racing"

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        whole = isinstance(self.first, int)
        if isinstance(self.first, bool) or not (self.first >= 1 if whole else 0 < self.first < 1):
            raise ValueError(
                f"first must be a share between 0 and 1 or a number of examples, got {self.first!r}"
            )

    def open(self, workspace: Workspace, evaluator: Evaluator) -> Races:
        """Start to work for one phase."""
        over = self.over.open(workspace, evaluator)
        return Races(self, workspace, evaluator, over, self.confidence, self.first)
