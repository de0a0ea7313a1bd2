"""Which engine scores a population: the one asked for, or the fastest that can take it.

The choice depends on the configuration, never on timings, so that a resumed run gives the same
bits. An engine is verified when it is first used: one member is scored in place, too. Where it
refuses, meets what it cannot take, or disagrees, members are scored in place.
"""

from __future__ import annotations

import math
import types
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evostep.engines.base import CannotScore, Engine
from evostep.engines.inplace import InPlace
from evostep.engines.lowrank import SharedProduct
from evostep.engines.prefix import Prefix
from evostep.engines.racing import Racing
from evostep.engines.vmap import Vmap
from evostep.errors import stacklevel_outside, unknown_name
from evostep.genome.point import Coordinates
from evostep.scoring.batches import model_device
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Outcome, Scores
from evostep.spaces.workspace import Workspace

# How far an engine's score of an example, or of all, may lie from that of scoring in place: sums in
# another order. A prediction at a tie may change, so some examples may lie farther.
TOLERANCE = 1e-3
TOLERANCE_IN_HALF = 2e-2  # in 16 bits: bfloat16 has 8 of precision
_EXAMPLES_BEYOND = 0.005
_EXAMPLES_BEYOND_IN_HALF = 0.02
_HALF = (torch.bfloat16, torch.float16)


def engines() -> dict[str, type[Engine]]:
    """Return the engines by name."""
    return {kind.name: kind for kind in (InPlace, Vmap, SharedProduct, Prefix, Racing)}


def make_engine(wanted: str | Engine) -> Engine | None:
    """Return the engine that a user asks for; None for ``"auto"``.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> make_engine("inplace")
        InPlace()
    """
    if isinstance(wanted, Engine):
        return wanted
    if wanted == "auto":
        return None
    known = engines()
    if wanted not in known:
        raise unknown_name("engine", str(wanted), ["auto", *known])
    return known[wanted]()


class Scorer:
    """Scores the parent and the members of a generation.

    What was found out of an engine, that it is right or that it cannot, holds for one fitness: with
    another one it is found out anew.

    Args:
        wanted: an engine, its name, or ``"auto"``.
    """

    def __init__(self, wanted: str | Engine = "auto") -> None:
        self.wanted = wanted
        self._asked = make_engine(wanted)
        self._inplace = InPlace()
        self._candidates = (
            [self._asked]
            if self._asked is not None
            else [SharedProduct(), Vmap(), Prefix(), Racing()]
        )
        self._verified: set[str] = set()
        self._given_up: set[str] = set()
        self._warned: set[str] = set()
        self._fitness: Callable[[], Any] | None = None  # of which that holds

    def state(self) -> dict[str, list[str]]:
        """Return what was found out of engines, so that a resumed run takes the same."""
        return {"verified": sorted(self._verified), "given_up": sorted(self._given_up)}

    def load(self, state: Mapping[str, Sequence[str]]) -> None:
        """Go on with what `state` gave; it holds for the fitness that comes next.

        What it lacks, as one of an older version lacks all, is found out anew.
        """
        self._verified = set(state.get("verified", ()))
        self._given_up = set(state.get("given_up", ()))
        self._fitness = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the fitness out of a copy or a pickle, as `state` does."""
        return {**vars(self), "_fitness": None}

    def forget(self) -> None:
        """Find out anew what engines can do."""
        self.load({})

    def score(
        self,
        members: Sequence[Coordinates],
        workspace: Workspace,
        evaluator: Evaluator,
        *,
        keep_outputs: bool = False,
    ) -> tuple[Scores, list[Outcome]]:
        """Score the parent, and the members; give the scores and the outcomes in their order.

        Args:
            members: of the generation.
            workspace: which writes them.
            evaluator: which has begun the generation.
            keep_outputs: of the parent, see `Fitness.score`.

        Raises:
            Exception: whatever the fitness raises for the parent.
        """
        self._meet(evaluator.fitness)
        engine = self._choose(members, workspace, evaluator)
        try:
            with engine.around_parent(workspace, evaluator):
                parent = evaluator(keep_outputs=keep_outputs)
        except CannotScore as error:
            self._give_up(engine, str(error))
            engine, parent = self._inplace, evaluator(keep_outputs=keep_outputs)
        evaluator.parent = parent
        if isinstance(engine, InPlace):
            return parent, engine.score(members, workspace, evaluator)
        try:
            outcomes = engine.score(members, workspace, evaluator)
            self._verify(engine, members, workspace, evaluator, outcomes)
        except CannotScore as error:
            self._give_up(engine, str(error))
            outcomes = self._inplace.score(members, workspace, evaluator)
        return parent, outcomes

    def close(self) -> None:
        """Drop what engines cached: the phase is over."""
        for engine in self._candidates:
            engine.close()

    def _meet(self, fitness: Callable[[], Any]) -> None:
        if self._fitness is not None and not _is_same(self._fitness(), fitness):
            self.forget()
        self._fitness = _refer_to(fitness)

    def _choose(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> Engine:
        for engine in self._candidates:
            if engine.name in self._given_up:
                continue
            refusal = engine.refusal(members, workspace, evaluator)
            if refusal is None:
                if engine is self._asked or engine.pays(workspace, evaluator):
                    return engine
            elif engine is self._asked:
                self._give_up(engine, refusal)
        return self._inplace

    def _give_up(self, engine: Engine, why: str) -> None:
        self._given_up.add(engine.name)
        engine.close()
        text = (
            f"engine {engine.name!r} cannot score these members, which are scored in place: {why}"
        )
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=stacklevel_outside())

    def _verify(
        self,
        engine: Engine,
        members: Sequence[Coordinates],
        workspace: Workspace,
        evaluator: Evaluator,
        outcomes: Sequence[Outcome],
    ) -> None:
        """Score one in place, too, when an engine is first used: the last that was in full."""
        if engine.name in self._verified:
            return
        whole = [i for i, outcome in enumerate(outcomes) if outcome.seen is None]
        if not whole:
            return
        last = whole[-1]
        (expected,) = self._inplace.score([members[last]], workspace, evaluator)
        if not agree(outcomes[last], expected, in_half=_in_half(evaluator)):
            raise CannotScore(
                f"it gave a member the score {outcomes[last].scores.value:g}, in place it is "
                f"{expected.scores.value:g}"
            )
        self._verified.add(engine.name)


def _refer_to(fitness: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that gives it as long as others hold it: it may hold much memory."""
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


def agree(one: Outcome, other: Outcome, *, in_half: bool = False) -> bool:
    """Return whether two scorings of a member are the same but for rounding.

    Args:
        one: scores or a failure.
        other: the same member's.
        in_half: whether they were computed in 16 bits.

    Example:
        >>> agree(Outcome(Scores(0.5)), Outcome(Scores(0.5000001)))
        True
        >>> agree(Outcome(Scores(0.5)), Outcome(Scores(0.6)))
        False
    """
    if one.failed or other.failed:
        return one.failed and other.failed
    a, b = one.scores, other.scores
    tolerance = TOLERANCE_IN_HALF if in_half else TOLERANCE
    if a.per_example is not None and b.per_example is not None:
        apart = _apart(a.per_example, b.per_example, tolerance)
        share = _EXAMPLES_BEYOND_IN_HALF if in_half else _EXAMPLES_BEYOND
        return apart <= max(1, math.ceil(share * len(b.per_example)))
    return abs(a.value - b.value) <= 10 * tolerance * max(1.0, abs(b.value))


def _apart(a: Tensor, b: Tensor, tolerance: float) -> int:
    """Count the examples whose scores differ by more than rounding."""
    if a.shape != b.shape:
        return max(len(a), len(b)) + 1
    near = (a - b).abs() <= tolerance * b.abs().clamp(min=1.0)
    return int((~near).sum())
