"""The forward passes of one scoring: each is recorded, replayed, or simply run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from evostep.engines.base import CannotScore
from evostep.engines.prefix.layout import Layout
from evostep.engines.prefix.recording import Recorder
from evostep.engines.prefix.replay import Recording, Replay, key_of, tensors_in
from evostep.errors import reason
from evostep.genome.slots import version
from evostep.scoring.batches import Examples
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.fitness import Fitness

_ABSENT = object()


@dataclass(frozen=True)
class Entry:
    """What is kept for a batch; no recording where it has no room.

    The inputs are held so that their id is not given to others.
    """

    inputs: Any
    versions: tuple[int, ...]
    recording: Recording | None


@dataclass
class Cache:
    """Recordings of one phase, by the id of the inputs.

    Attributes:
        failure: why a pass could not be recorded or replayed.
        given_up: the same, where there is no hope for the rest of the phase.
    """

    identity: object = None
    contents: object = None
    entries: dict[int, Entry] = field(default_factory=dict)
    failure: str | None = None
    given_up: str | None = None

    @property
    def nbytes(self) -> int:
        """What is kept, in bytes."""
        recordings = [entry.recording for entry in self.entries.values()]
        return sum(recording.nbytes for recording in recordings if recording is not None)

    def settle(self, identity: object, contents: object) -> None:
        """Drop what was recorded of another model, or with other weights."""
        if identity != self.identity:
            self.reset()
        elif contents != self.contents:
            self.entries.clear()
        self.identity, self.contents = identity, contents

    def find(self, inputs: Any) -> Entry | None:
        """Return what is known of a batch, unless it was written to since."""
        entry = self.entries.get(id(inputs))
        return entry if entry is not None and entry.versions == _versions(inputs) else None

    def fail(self, reason: str) -> None:
        """Drop all, and remember why."""
        self.failure = self.failure or reason
        self.entries.clear()

    def drop(self) -> None:
        """Drop all, and forget why."""
        self.failure = None
        self.entries.clear()

    def give_up(self) -> CannotScore:
        """Drop all, and try no more; give the exception that says why."""
        assert self.failure is not None
        self.given_up = self.failure
        self.drop()
        return CannotScore(self.given_up)

    def reset(self) -> None:
        """Be as a new one."""
        self.drop()
        self.identity = self.contents = self.given_up = None


class Passes:
    """The passes in which a fitness is scored on some examples.

    Args:
        fitness: whose model is called.
        examples: of the generation.
        layout: of the model.
        cache: with what was recorded.
        cache_bytes: that it may hold.
    """

    def __init__(
        self, fitness: Fitness, examples: Examples, layout: Layout, cache: Cache, cache_bytes: int
    ) -> None:
        self._fitness, self._layout, self._cache = fitness, layout, cache
        self._inputs = [inputs for inputs, _ in examples]
        self._cache_bytes = cache_bytes
        self._apply = fitness.apply
        self._parent = False
        self._run: Recorder | Replay | None = None

    @property
    def complete(self) -> bool:
        """Whether each batch is recorded, or known to have no room."""
        return all(self._cache.find(inputs) is not None for inputs in self._inputs)

    @contextmanager
    def installed(self, *, parent: bool = False) -> Iterator[None]:
        """Let the fitness's passes be replayed, or recorded if it is the parent's.

        Recording disturbs nothing: what goes wrong is the cache's `failure`. A replay raises.

        Raises:
            CannotScore: in a pass, which was not the one that was recorded.
        """
        self._parent = parent
        modules = [(module, "forward", self._forward(module)) for module in self._layout.names]
        try:
            with _replaced([(self._fitness, "apply", self._pass), *modules]):
                yield
        except BaseException:
            self._cache.drop()  # nothing half recorded
            raise
        finally:
            torch.clear_autocast_cache()  # which may hold what stands for a dropped tensor

    def verify(self, evaluator: Evaluator) -> None:
        """See that replays give what was recorded, if any is new; or else the cache fails."""
        entries = [self._cache.find(inputs) for inputs in self._inputs]
        recordings = [entry.recording for entry in entries if entry is not None]
        if not any(recordings):
            self._cache.fail(
                f"cache_bytes={self._cache_bytes} are too few for what comes before "
                f"{next(iter(self._layout.moving.values()))}, on any batch"
            )
        elif any(recording.outputs is not None for recording in recordings if recording):
            try:
                with self.installed():
                    evaluator()
            except CannotScore as error:
                self._cache.fail(str(error))
            except Exception as error:
                self._cache.fail(f"a replay raised {reason(error)}")

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
        if self._cache.failure is not None and not self._parent:
            raise CannotScore(self._cache.failure)
        entry = self._cache.find(inputs)
        if entry is not None and entry.recording is not None:
            return self._replay(entry.recording, model, inputs, targets)
        if entry is None and self._parent and self._cache.failure is None:
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
        layout = self._layout
        lasting = {*layout.lasting, *map(key_of, tensors_in((inputs, targets), strict=False))}
        recorder = Recorder(layout.names, layout.root, layout.moving, lasting, self._room)
        result = self._through(recorder, model, inputs, targets)
        recording = recorder.finish(result)
        if recorder.failure is not None:
            self._cache.fail(recorder.failure)
        else:
            self._cache.entries[id(inputs)] = Entry(inputs, _versions(inputs), recording)
        return result

    def _room(self, nbytes: int) -> bool:
        """Make room for a recording, dropping those of batches that are not used now."""
        entries = self._cache.entries
        others = iter(entries.keys() - set(map(id, self._inputs)))
        while self._cache.nbytes + nbytes > self._cache_bytes:
            other = next(others, None)
            if other is None:
                return False
            del entries[other]
        return True

    def _replay(self, recording: Recording, model: nn.Module, inputs: Any, targets: Any) -> Any:
        replay = Replay(recording)
        try:
            result = self._through(replay, model, inputs, targets)
            replay.finish(result)
        except Exception as error:
            why = replay.blame(error)
            if why is None:
                raise  # a member's own
            self._cache.fail(why)
            raise CannotScore(why) from error
        return result


@contextmanager
def _replaced(attributes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace attributes (object, name, value) of instances; put them back on leaving."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for owner, name, value in attributes:
            before.append((vars(owner), name, vars(owner).get(name, _ABSENT)))
            vars(owner)[name] = value
        yield
    finally:
        for own, name, value in reversed(before):
            if value is _ABSENT:
                own.pop(name, None)
            else:
                own[name] = value


def _versions(inputs: Any) -> tuple[int, ...]:
    return tuple(version(tensor) for tensor in tensors_in(inputs, strict=False))
