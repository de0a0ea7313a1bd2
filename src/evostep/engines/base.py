"""The contract of engines.

An engine is frozen configuration; `open` starts a `Session`, which scores the members of one phase
and holds what is found out or cached on the way. `InPlace` is the plain reference; every other
agrees with it within a stated tolerance, or refuses with a reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from evostep.genome.point import Coordinates
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace


class CannotScore(Exception):  # noqa: N818 - a verdict on a model, not a mistake of the user's
    """An engine has met a model that it cannot take: one line, with the layer and the reason."""


class Engine(ABC):
    """A way of scoring members. Subclasses are frozen dataclasses.

    Attributes:
        name: by which a user asks for it.
    """

    name: ClassVar[str]

    def meet(
        self,
        claims: Callable[[], Mapping[str, object]],
        buffers: Callable[[], Iterable[Tensor]],
        warned: set[str],
    ) -> None:
        """Before a phase: see to it that all who work on it do the same, where there are several.

        Args:
            claims: returns what has to be the same for all, by its name.
            buffers: returns what is made the same for all, in one order.
            warned: names of warnings that were given once; those given now are added.
        """
        return None

    @abstractmethod
    def open(self, workspace: Workspace, evaluator: Evaluator) -> Session[Any]:
        """Start to work for one phase.

        Args:
            workspace: writes members into the model.
            evaluator: scores the model as it stands.
        """


E_co = TypeVar("E_co", bound=Engine, covariant=True)


class Session(ABC, Generic[E_co]):
    """An engine at work for one phase.

    Weights, buffers, modes, hooks, requires_grad and random streams are as before after each call,
    whatever is raised.
    """

    def __init__(self, engine: E_co, workspace: Workspace, evaluator: Evaluator) -> None:
        self.engine = engine
        self.workspace = workspace
        self.evaluator = evaluator

    def expect(self, size: int) -> None:
        """Take note of how many members each generation of the phase has."""
        return None

    def refusal(self, round: Round, members: Sequence[Coordinates]) -> str | None:
        """Return why these members cannot be scored so; None: it can be tried. Cheap."""
        return None

    def pays(self, round: Round) -> bool:
        """Return whether it is faster than scoring in place, as far as sizes tell."""
        return True

    def parent(
        self,
        round: Round,
        members: Sequence[Coordinates],
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Scores:
        """Score the parent of the members, which stands in the model: see `Evaluator.score`.

        Raises:
            Exception: whatever the fitness raises.
        """
        return self.evaluator.score(round, keep_outputs=keep_outputs, watch=watch)

    @abstractmethod
    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Score members, in their order.

        Args:
            round: of the generation, with the parent's scores.
            members: of the generation.

        Raises:
            CannotScore: the model cannot be taken; the weights are the center's.
        """

    def all_agree(self, decision: bool) -> bool:
        """Return whether all who work on the phase have decided so."""
        return decision

    def done(self) -> None:
        """Take note that the phase has come to its end.

        Raises:
            ValueError: others who work on it have come to another one.
        """
        return None

    def leave(self) -> None:
        """Take note that the phase is left before its end, by an error or an interrupt."""
        return None

    def close(self) -> None:
        """Drop what was cached: the phase is over."""
        return None
