"""The contract of engines.

An engine takes (members, workspace, evaluator) and gives an outcome for each member. `InPlace` is
the plain reference; every other agrees with it within a stated tolerance, or says that it cannot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from evostep.genome.point import Coordinates
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.scores import Outcome
from evostep.spaces.workspace import Workspace


class CannotScore(Exception):  # noqa: N818 - a verdict on a model, not a mistake of the user's
    """An engine has met a model that it cannot take: one line, with the layer and the reason."""


class Engine(ABC):
    """A way of scoring members. Subclasses are frozen dataclasses; what they cache is private.

    Weights, buffers, modes, hooks, requires_grad and random streams are as before afterwards,
    whatever is raised.

    Attributes:
        name: by which a user asks for it.
    """

    name: ClassVar[str]

    def refusal(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> str | None:
        """Return why these members cannot be scored so; None: it can be tried. Cheap."""
        return None

    def pays(self, workspace: Workspace, evaluator: Evaluator) -> bool:
        """Return whether it is faster than scoring in place, as far as sizes tell."""
        return True

    def around_parent(
        self, workspace: Workspace, evaluator: Evaluator
    ) -> AbstractContextManager[None]:
        """Return the context within which the parent of the members is scored."""
        return nullcontext()

    @abstractmethod
    def score(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> list[Outcome]:
        """Score members, in their order.

        Raises:
            CannotScore: the model cannot be taken; the weights are the center's.
        """

    def close(self) -> None:
        """Drop what was cached: the phase is over."""
        return None
