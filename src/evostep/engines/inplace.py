"""The plain engine: write a member into the model, score it, go on; at the end restore the center.

One detached copy of the center: memory does not depend on the population, and noise is drawn into
the weights themselves. A mirror image is made of the member that stands there, so that an
antithetic pair draws its noise once. Every other engine must agree with this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from evostep.engines.base import Engine, Session
from evostep.genome.point import Coordinates
from evostep.interrupts import Undoing
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Scores, read
from evostep.spaces.workspace import Workspace


@dataclass(frozen=True)
class InPlace(Engine):
    """Scores members one after the other, whatever the model and the fitness are.

    Example:
        >>> import torch
        >>> from evostep import Evolution, OpenAIES
        >>> w = torch.ones(3)
        >>> search = Evolution({"w": w}, OpenAIES(0.1, population=4), engine="inplace")
        >>> len(search.evolve(lambda: -float(w.square().sum()))[0].scores)
        4
    """

    name: ClassVar[str] = "inplace"

    def open(self, workspace: Workspace, evaluator: Evaluator) -> OneByOne:
        """Start to work for one phase."""
        return OneByOne(self, workspace, evaluator)


class OneByOne(Session[InPlace]):
    """Scores members one after the other."""

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Score each; the weights are the center's again afterwards, whatever is raised."""
        scores = []
        with Undoing(self.workspace.restore):
            for member in members:
                self.workspace.write(member)
                scores.append(self.evaluator.attempt_later(round))
                if not isinstance(self.evaluator.fitness, Fitness):
                    self.workspace.touched()  # it may do anything
        return read(scores)
