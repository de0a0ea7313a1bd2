"""Which engine scores a population: the one asked for, or the fastest that can take it.

The choice depends on the configuration, never on timings, so that a resumed run gives the same
bits. An engine is verified when it is first used: one member is scored in place, too. Where it
refuses, meets what it cannot take, or disagrees, members are scored in place.
"""

from __future__ import annotations

import math
import types
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from evostep.engines import ENGINES
from evostep.engines.base import CannotScore, Engine, Session
from evostep.engines.inplace import InPlace
from evostep.errors import unknown_name, warn
from evostep.genome.point import Coordinates
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.placing import model_device
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace

# How far an engine's score of an example, or of all, may lie from that of scoring in place: sums in
# another order. A prediction at a tie may change, so some examples may lie farther.
TOLERANCE = 1e-3
TOLERANCE_IN_HALF = 2e-2  # in 16 bits: bfloat16 has 8 of precision
_EXAMPLES_BEYOND = 0.005
_EXAMPLES_BEYOND_IN_HALF = 0.02
_HALF = (torch.bfloat16, torch.float16)


class Findings:
    """What was found out of engines: that they are right, or that they cannot.

    It holds for one fitness: with another one it is found out anew.
    """

    def __init__(self) -> None:
        self.verified: set[str] = set()
        self.given_up: set[str] = set()
        self.warned: set[str] = set()  # texts; whatever the fitness, a user reads each once
        self._fitness: Callable[[], Any] | None = None  # of which that holds

    def state(self) -> dict[str, list[str]]:
        """Return what a resumed run needs to take the same engines."""
        return {"verified": sorted(self.verified), "given_up": sorted(self.given_up)}

    def load(self, state: Mapping[str, Sequence[str]]) -> None:
        """Go on with what `state` returned; it holds for the fitness that comes next.

        What it lacks, as one of an older version lacks all, is found out anew.
        """
        self.verified = set(state.get("verified", ()))
        self.given_up = set(state.get("given_up", ()))
        self._fitness = None

    def meet(self, fitness: Callable[[], Any]) -> None:
        """Forget what was found with another fitness."""
        if self._fitness is not None and not _is_same(self._fitness(), fitness):
            self.load({})
        self._fitness = _refer_to(fitness)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the fitness out of a copy or a pickle, as `state` does."""
        return {**vars(self), "_fitness": None}


def _all_but_the_plain_one() -> tuple[Engine, ...]:
    return tuple(kind() for kind in ENGINES.values() if kind is not InPlace)


@dataclass(frozen=True)
class Auto(Engine):
    """Scores with the first of some engines that can take the members, checked against `InPlace`.

    Args:
        engines: to choose among, in order of preference.
        asked_for: whether a user asked for them: then one is taken whether it pays or not, and a
            warning says why it cannot.

    Example:
        >>> Auto.of("inplace").engines
        (InPlace(),)
    """

    name: ClassVar[str] = "auto"
    engines: tuple[Engine, ...] = field(default_factory=_all_but_the_plain_one)
    asked_for: bool = False

    @classmethod
    def of(cls, wanted: str | Engine) -> Auto:
        """Return the choice that a user asks for: an engine, its name, or ``"auto"``.

        Raises:
            ValueError: an unknown name.
        """
        if isinstance(wanted, Auto):
            return wanted
        if isinstance(wanted, Engine):
            return cls((wanted,), asked_for=True)
        if wanted == cls.name:
            return cls()
        if wanted not in ENGINES:
            raise unknown_name("engine", str(wanted), [cls.name, *ENGINES])
        return cls((ENGINES[wanted](),), asked_for=True)

    def open(
        self, workspace: Workspace, evaluator: Evaluator, findings: Findings | None = None
    ) -> Choice:
        """Start to work for one phase, with what was found out in earlier ones."""
        return Choice(self, workspace, evaluator, findings or Findings())


class Choice(Session[Auto]):
    """Chooses an engine for each generation, and checks it when it is first used."""

    def __init__(
        self, engine: Auto, workspace: Workspace, evaluator: Evaluator, findings: Findings
    ) -> None:
        super().__init__(engine, workspace, evaluator)
        self._findings = findings
        findings.meet(evaluator.fitness)
        self._inplace = InPlace().open(workspace, evaluator)
        self._candidates = [
            self._inplace if isinstance(one, InPlace) else one.open(workspace, evaluator)
            for one in engine.engines
        ]
        self._chosen: Session[Any] = self._inplace

    def parent(
        self,
        round: Round,
        members: Sequence[Coordinates],
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Scores:
        """Choose who scores these members, and score their parent."""
        self._chosen = self._choose(round, members)
        spent = self.evaluator.spent
        try:
            return self._chosen.parent(round, members, keep_outputs=keep_outputs, watch=watch)
        except CannotScore as error:
            self.evaluator.spent = spent
            self._give_up(self._chosen, str(error))
            return self.evaluator.score(round, keep_outputs=keep_outputs, watch=watch)

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Score members by the engine chosen, or in place if it turns out that it cannot."""
        if self._chosen is self._inplace:
            return self._inplace.score(round, members)
        spent = self.evaluator.spent
        try:
            scores = self._chosen.score(round, members)
            self._verify(round, members, scores)
        except CannotScore as error:
            self.evaluator.spent = spent  # what came to nothing is not the user's to pay
            self._give_up(self._chosen, str(error))
            scores = self._inplace.score(round, members)
        return scores

    def close(self) -> None:
        """Drop what engines cached: the phase is over."""
        for session in self._candidates:
            session.close()

    @property
    def chosen(self) -> Engine:
        """Who scores the members of this generation."""
        engine: Engine = self._chosen.engine
        return engine

    def drop(self, names: Collection[str]) -> None:
        """Take no engine of these names any more: somebody else who scores cannot."""
        self._findings.given_up.update(names)
        self._findings.verified.difference_update(names)
        for session in self._candidates:
            if session.engine.name in names:
                session.close()
        if self.chosen.name in names:
            self._chosen = self._inplace

    def _choose(self, round: Round, members: Sequence[Coordinates]) -> Session[Any]:
        for session in self._candidates:
            if session.engine.name in self._findings.given_up:
                continue
            refusal = session.refusal(round, members)
            if refusal is None:
                if self.engine.asked_for or session.pays(round):
                    return session
            elif self.engine.asked_for:
                self._give_up(session, refusal)
        return self._inplace

    def _give_up(self, session: Session[Any], why: str) -> None:
        name = session.engine.name
        self._findings.given_up.add(name)
        session.close()
        self._chosen = self._inplace
        text = f"engine {name!r} cannot score these members, which are scored in place: {why}"
        if text not in self._findings.warned:
            self._findings.warned.add(text)
            warn(text)

    def _verify(
        self, round: Round, members: Sequence[Coordinates], scores: Sequence[Scores]
    ) -> None:
        """Score one in place, too, when an engine is first used: the last that was in full."""
        name = self._chosen.engine.name
        whole = [i for i, one in enumerate(scores) if one.seen is None]
        if name in self._findings.verified or not whole:
            return
        last = whole[-1]
        with self.evaluator.uncounted():
            (expected,) = self._inplace.score(round, [members[last]])
        if not agree(scores[last], expected, in_half=_in_half(self.evaluator)):
            raise CannotScore(
                f"it gave a member the score {scores[last].value:g}, in place it is "
                f"{expected.value:g}"
            )
        self._findings.verified.add(name)


def _refer_to(fitness: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that returns it as long as others hold it: it may hold much memory."""
    try:
        if isinstance(fitness, types.MethodType):
            return weakref.WeakMethod(fitness)
        return weakref.ref(fitness)
    except TypeError:  # of a type that cannot be referred to so
        return lambda: fitness


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(other, types.MethodType) and bool(one == other))


def _in_half(evaluator: Evaluator) -> bool:
    """Return whether a forward computes in 16 bits."""
    fitness = evaluator.fitness
    if not isinstance(fitness, Fitness):
        return False
    cast = fitness.autocast is not None
    cast = cast or torch.is_autocast_enabled(model_device(fitness.model).type)
    return cast or any(p.dtype in _HALF for p in fitness.model.parameters())


def agree(one: Scores, other: Scores, *, in_half: bool = False) -> bool:
    """Return whether two scorings of a member are the same but for rounding.

    Args:
        one: scores or a failure.
        other: the same member's.
        in_half: whether they were computed in 16 bits.

    Example:
        >>> agree(Scores(0.5), Scores(0.5000001))
        True
        >>> agree(Scores(0.5), Scores(0.6))
        False
    """
    if one.failed or other.failed:
        return one.failed and other.failed
    tolerance = TOLERANCE_IN_HALF if in_half else TOLERANCE
    if one.per_example is not None and other.per_example is not None:
        apart = _apart(one.per_example, other.per_example, tolerance)
        share = _EXAMPLES_BEYOND_IN_HALF if in_half else _EXAMPLES_BEYOND
        return apart <= max(1, math.ceil(share * len(other.per_example)))
    return abs(one.value - other.value) <= 10 * tolerance * max(1.0, abs(other.value))


def _apart(a: Tensor, b: Tensor, tolerance: float) -> int:
    """Count the examples whose scores differ by more than rounding."""
    if a.shape != b.shape:
        return max(len(a), len(b)) + 1
    near = (a - b).abs() <= tolerance * b.abs().clamp(min=1.0)
    return int((~near).sum())
