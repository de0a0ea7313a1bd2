"""What lives for a phase: recordings, and the passes in which they are made and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from evostep.engines.base import CannotScore, Engine, Session
from evostep.engines.inplace import InPlace
from evostep.engines.prefix.layout import Layout
from evostep.engines.prefix.record import Recorder
from evostep.engines.prefix.replay import Recording, Replay
from evostep.engines.stacked import why_opaque
from evostep.errors import reason
from evostep.genome.point import Coordinates
from evostep.interrupts import Undoing
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.nests import leaves, versions
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace

_Key = tuple[int, ...]
_ABSENT = object()


class PrefixSession(Session[Engine]):
    """Records the passes of one phase, and replays them.

    Args:
        engine: which opened it.
        workspace: see `Engine.open`.
        evaluator: see `Engine.open`.
        cache_bytes: how much the recordings may hold.

    Attributes:
        recordings: by the ids of what a batch's inputs hold.
        failure: why a pass could not be recorded or replayed.
        given_up: the same, where there is no hope for the rest of the phase.
    """

    def __init__(
        self, engine: Engine, workspace: Workspace, evaluator: Evaluator, cache_bytes: int
    ) -> None:
        super().__init__(engine, workspace, evaluator)
        self._cache_bytes = cache_bytes
        self._inplace = InPlace().open(workspace, evaluator)
        self._run: Recorder | Replay | None = None
        self.recordings: dict[_Key, Recording] = {}
        self.failure: str | None = None
        self.given_up: str | None = None
        self._signature: list[object] | None = None

    def refusal(self, round: Round, members: Sequence[Coordinates]) -> str | None:
        """Return why nothing can be replayed, as far as one can tell without a forward pass."""
        fitness = self.evaluator.fitness
        if not isinstance(fitness, Fitness):
            return "a bare callable shows no forward pass: give an evostep.Fitness"
        if self.evaluator.calibrates:
            return "calibration= estimates the statistics of all layers anew for each member"
        if fitness.mode == "train":
            return "in mode='train' dropout and batch statistics are anew for each member"
        if round.examples is not None and not round.examples.stable:
            return "keep= gives other tensors each time: what came of them cannot be looked up"
        opaque = self.workspace.shared or why_opaque(fitness.model)
        return opaque or self.given_up or Layout(fitness.model, self.workspace.live).refusal

    def parent(
        self,
        round: Round,
        members: Sequence[Coordinates],
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Scores:
        """Score the parent; record what has not been recorded, and replay the rest."""
        score = partial(super().parent, round, members, keep_outputs=keep_outputs, watch=watch)
        if self.refusal(round, members) is not None:
            return score()
        self._look(round)
        with self._passes(record=True):
            return score()

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Score each in place, the prefix replayed.

        Raises:
            CannotScore: the model cannot be taken; the weights are the center's.
        """
        refusal = self.refusal(round, members)
        if refusal is not None:
            raise CannotScore(refusal)
        scores: list[Scores] = []
        # twice: a first pass may fill caches of the model's own, such as masks
        if any(self._prepare(round) for _ in range(2)):
            with self._passes():
                scores = self._inplace.score(round, members)
        if self.failure is not None:
            self.given_up, self.failure = self.failure, None
            raise CannotScore(self.given_up)
        return scores

    def close(self) -> None:
        """Drop what was recorded."""
        self.recordings.clear()
        self.failure = self.given_up = self._signature = None

    def _prepare(self, round: Round) -> bool:
        """Record what was not while the parent was scored; return whether replays give the same."""
        self.failure = None
        self._look(round)
        try:
            with self._passes(record=True), self.evaluator.uncounted():
                for _ in ("record", "replay"):
                    if not all(found and found.outputs is None for found in self._found()):
                        self.evaluator.score(round)
        except Exception as error:
            self.fail(f"to score the parent again raised {reason(error)}")
        if self.failure is None and not any(found and found.calls for found in self._found()):
            moving = next(iter(self._layout.moving.values()))
            self.fail(
                f"cache_bytes={self._cache_bytes} are too few for what comes before {moving}, "
                "on any batch"
            )
        return self.failure is None

    def fail(self, reason: str) -> CannotScore:
        """Drop all, and remember why; return what to raise."""
        self.failure = self.failure or reason
        self.recordings.clear()
        return CannotScore(self.failure)

    def find(self, inputs: Any) -> Recording | None:
        """Return what is known of a batch, unless it was written to since."""
        found = self.recordings.get(_key(inputs))
        return found if found is not None and found.versions == versions(inputs) else None

    def _found(self) -> list[Recording | None]:
        return [self.find(inputs) for inputs in self._inputs]

    def _look(self, round: Round) -> None:
        """Look at model and batches; drop what was recorded of others, or with other weights."""
        fitness = self.evaluator.fitness
        assert isinstance(fitness, Fitness), "refusal() comes first"
        assert round.examples is not None, "a Fitness has examples"
        self._fitness, self._layout = fitness, Layout(fitness.model, self.workspace.live)
        self._inputs = [inputs for inputs, _ in round.examples.batches]
        signature = self._layout.signature()
        if signature != self._signature:
            self.recordings.clear()
            self._signature = signature

    @contextmanager
    def _passes(self, *, record: bool = False) -> Iterator[None]:
        """Let the fitness's passes be replayed, and recorded first if they are the parent's.

        Recording disturbs nothing: what goes wrong is the `failure`. A replay raises.

        Raises:
            CannotScore: in a pass, which was not the one that was recorded.
        """
        self._apply, self._records = self._fitness.apply, record
        modules = [(module, "forward", self._forward(module)) for module in self._layout.names]
        try:
            with _replaced([(self._fitness, "apply", self._pass), *modules]):
                yield
        except BaseException:
            self.recordings.clear()
            raise
        finally:
            torch.clear_autocast_cache()  # which may hold placeholders

    def _forward(self, module: nn.Module) -> Callable[..., Any]:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._run is None:
                return original(*args, **kwargs)
            return self._run.call(module, original, args, kwargs)

        return forward

    def _pass(self, model: nn.Module, inputs: Any, targets: Any) -> Any:
        """Stand for `Fitness.apply`."""
        torch.clear_autocast_cache()  # each pass casts for itself
        if self.failure is not None and not self._records:
            raise CannotScore(self.failure)
        known = self.find(inputs)
        if known is not None and known.calls:
            return self._replay(known, model, inputs, targets)
        if known is None and self._records and self.failure is None:
            return self._record(model, inputs, targets)
        return self._apply(model, inputs, targets)

    def _through(self, run: Recorder | Replay, model: nn.Module, inputs: Any, targets: Any) -> Any:
        self._run = run
        try:
            with run:
                return self._apply(model, inputs, targets)
        finally:
            self._run = None

    def _record(self, model: nn.Module, inputs: Any, targets: Any) -> Any:
        recorder = Recorder(self._layout, (inputs, targets), self._room, self.fail)
        result = self._through(recorder, model, inputs, targets)
        recording = recorder.finish(result)
        if self.failure is None:
            recording.inputs, recording.versions = inputs, versions(inputs)
            self.recordings[_key(inputs)] = recording
        return result

    def _room(self, nbytes: int) -> bool:
        """Make room for a recording, dropping those of batches that are not used now."""
        held = sum(recording.nbytes for recording in self.recordings.values())
        others = self.recordings.keys() - set(map(_key, self._inputs))
        while held + nbytes > self._cache_bytes and others:
            held -= self.recordings.pop(others.pop()).nbytes
        return held + nbytes <= self._cache_bytes

    def _replay(self, recording: Recording, model: nn.Module, inputs: Any, targets: Any) -> Any:
        replay = Replay(recording, self.fail)
        try:
            result = self._through(replay, model, inputs, targets)
            replay.finish(result)
            if self.failure is not None:  # and somebody has swallowed it
                raise CannotScore(self.failure)
        except Exception as error:
            following = replay.next
            if self.failure is None and following is None and recording.outputs is None:
                raise  # a member's own
            where = "" if following is None else f"before {following.name}, "
            raise self.fail(f"{where}a replay raised {reason(error)}") from error
        return result


@contextmanager
def _replaced(attributes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace attributes (object, name, value) of instances; put them back on leaving."""
    attributes = list(attributes)
    before = [(vars(owner), name, vars(owner).get(name, _ABSENT)) for owner, name, _ in attributes]

    def put_back() -> None:
        for own, name, value in before:
            if value is _ABSENT:
                own.pop(name, None)
            else:
                own[name] = value

    with Undoing(put_back):
        for owner, name, value in attributes:
            vars(owner)[name] = value
        yield


def _key(inputs: Any) -> _Key:
    return tuple(map(id, leaves(inputs)))
