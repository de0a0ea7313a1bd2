"""Several members at once, each on a thread of its own: for a processor with several cores.

One member on all cores wastes them: small layers, normalisations and what lies between two layers
do not fill them. So each worker has one core, and a model of its own whose modules are copies and
whose weights are the model's own, but for those that move. A score does not depend on who made it:
every member is scored by one thread, whatever the number of workers.
"""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evostep.engines.base import CannotScore, Engine, Session
from evostep.engines.stacked import free_bytes, why_opaque
from evostep.engines.swap import places
from evostep.errors import reason
from evostep.genome.members import Mirror
from evostep.genome.point import Coordinates
from evostep.genome.slots import version
from evostep.interrupts import Undoing
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.isolation import seed_everything
from evostep.scoring.placing import model_device
from evostep.scoring.scores import Scores, read
from evostep.spaces.workspace import Workspace

# Weights times examples below which the calls, which take turns, cost more than the arithmetic (see
# benchmarks/engines.py).
_LARGE = 2**25


@dataclass(frozen=True)
class Workers(Engine):
    """Scores several members at once on the CPU, each on one thread.

    Args:
        workers: how many; None: as many as torch may use threads.

    Raises:
        ValueError: fewer than one.

    Example:
        >>> import torch
        >>> from evostep import Evolution, Fitness, OpenAIES
        >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> model = torch.nn.Linear(4, 4)
        >>> fitness = Fitness(model, [(x, x.argmax(1))], "accuracy")
        >>> search = Evolution(model, OpenAIES(0.1, population=8), engine=Workers(2))
        >>> len(search.evolve(fitness)[0].scores)
        8
    """

    workers: int | None = None
    name: ClassVar[str] = "workers"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")

    def open(self, workspace: Workspace, evaluator: Evaluator) -> AtOnce:
        """Start to work for one phase."""
        return AtOnce(self, workspace, evaluator)


class AtOnce(Session[Workers]):
    """Scores several members at once."""

    def __init__(self, engine: Workers, workspace: Workspace, evaluator: Evaluator) -> None:
        super().__init__(engine, workspace, evaluator)
        self._team: list[_Worker] = []  # the first works on the model itself

    def refusal(self, round: Round, members: Sequence[Coordinates]) -> str | None:
        """Return why no two members can be scored at once."""
        fitness = self.evaluator.fitness
        if not isinstance(fitness, Fitness):
            return "a bare callable scores the model as it stands: give an evostep.Fitness"
        if fitness.has_own_forward or not isinstance(fitness.metric, str):
            return "a forward= or a metric of one's own may not be called twice at the same time"
        if self.evaluator.calibrates:
            return "calibration= estimates BatchNorm statistics member by member"
        if fitness.mode == "train":
            return "in mode='train' members would not meet the same dropout and batch statistics"
        if model_device(fitness.model).type != "cpu":
            return "the model is not on the CPU"
        if round.examples is not None and round.examples.streamed:
            return "keep='stream' reads the batches once for each member"
        if torch.is_autocast_enabled("cpu"):
            return "torch.autocast holds for one thread: give Fitness(autocast=) instead"
        return self.workspace.shared or why_opaque(fitness.model) or _why_heard(fitness.model)

    def pays(self, round: Round) -> bool:
        """Return whether there are cores and memory, and members are large enough."""
        fitness = self.evaluator.fitness
        assert isinstance(fitness, Fitness), "refusal() comes first"
        copies = (self._wanted - 1) * sum(t.nbytes for t in self.workspace.live.values())
        numbers = sum(p.numel() for p in fitness.model.parameters() if p.dim() >= 2)
        large = numbers * round.cost >= _LARGE
        return self._wanted > 1 and large and copies <= free_bytes(torch.device("cpu")) // 4

    @property
    def _wanted(self) -> int:
        return self.engine.workers or torch.get_num_threads()

    def parent(
        self,
        round: Round,
        members: Sequence[Coordinates],
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Scores:
        """Score the parent, and see whether a forward leaves alone what all of them share.

        Raises:
            CannotScore: it draws random numbers, or writes into buffers or into its batch.
        """
        fitness = self.evaluator.fitness
        assert isinstance(fitness, Fitness), "refusal() comes first"
        seed_everything(round.seed_of("scoring"))
        streams = _streams()
        buffers = [(buffer, version(buffer)) for buffer in fitness.model.buffers()]
        with self.evaluator.unchanged(round):
            one = Evaluator(fitness)  # which puts nothing back
            scores = one.score(round, keep_outputs=keep_outputs, watch=watch)
            drawn = _streams() != streams
            written = any(version(buffer) != before for buffer, before in buffers)
        self.evaluator.spent += one.spent
        assert round.examples is not None, "a Fitness has examples"
        owner = round.examples.owner
        if drawn or written or (owner is not None and owner.written):
            what = "draws random numbers" if drawn else "writes into its buffers or its batch"
            raise CannotScore(f"the forward {what}, which members at once would share")
        return scores

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Score members, each by whoever is free; a pair of opposites by one, for its noise."""
        waiting = deque(_together(members))
        team = self._gathered(min(self._wanted, len(waiting)))
        scores: list[Scores | None] = [None] * len(members)
        faults: list[BaseException] = []

        def work(worker: _Worker) -> None:
            try:
                with torch.no_grad():
                    while waiting and not faults:
                        for i in waiting.popleft():
                            scores[i] = worker.score(round, members[i])
            except IndexError:  # another was faster
                return
            except BaseException as error:
                faults.append(error)

        threads = [
            threading.Thread(target=work, args=(worker,), name="evostep worker")
            for worker in team[1:]
        ]

        def stop() -> None:
            waiting.clear()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

        back = self.workspace.restore
        with self.evaluator.unchanged(round), Undoing(back), _single(), Undoing(stop):
            for thread in threads:
                thread.start()
            work(team[0])
            for thread in threads:
                thread.join()
        self.evaluator.spent += len(members) * round.cost
        for fault in faults:
            if not isinstance(fault, Exception):
                raise fault
            raise CannotScore(reason(fault)) from fault
        return read([one for one in scores if one is not None])

    def close(self) -> None:
        """Let the copies go."""
        self._team = []

    def _gathered(self, n: int) -> list[_Worker]:
        """Return n workers, made where there are not as many yet."""
        fitness, live = self.evaluator.fitness, self.workspace.live
        assert isinstance(fitness, Fitness), "refusal() comes first"
        if places(fitness.model, live).keys() != live.keys():
            raise CannotScore("the model does not hold all of the tensors that move")
        if not self._team:
            self._team = [_Worker(self.workspace, Evaluator(fitness))]
        while len(self._team) < n:
            model, own = twin(fitness.model, live)
            other = copy.copy(fitness)
            other.model = model
            workspace = Workspace(self.workspace.space, self.workspace.genome, own)
            self._team.append(_Worker(workspace, Evaluator(other)))
        return self._team[:n]


@dataclass(frozen=True)
class _Worker:
    """Writes members into a model of its own, and scores them there."""

    workspace: Workspace
    evaluator: Evaluator

    def score(self, round: Round, member: Coordinates) -> Scores:
        self.workspace.write(member)
        return self.evaluator.attempt_later(round)


def twin(model: nn.Module, live: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of a model's modules that shares all tensors but those that move.

    Args:
        model: to be copied.
        live: name -> the tensors that move.

    Returns:
        The copy, and name -> the tensors of its own.

    Raises:
        CannotScore: something in it cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> other, own = twin(layer, {"w": layer.weight})
        >>> other.weight is own["w"] is not layer.weight, other.bias is layer.bias
        (True, True)
    """
    moving = {id(tensor) for tensor in live.values()}
    kept = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in moving]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in kept}
    try:
        other = copy.deepcopy(model, memo)
    except Exception as error:  # a model may hold anything
        raise CannotScore(f"the model cannot be copied ({reason(error)})") from error
    return other, {name: memo[id(tensor)] for name, tensor in live.items()}


def _why_heard(model: nn.Module) -> str | None:
    """Return which module has a hook, which is the same for all copies; None: none has."""
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"module {path!r} has a forward hook" if path else "the model has a forward hook"
    return None


def _together(members: Sequence[Coordinates]) -> Iterator[list[int]]:
    """Yield the places of members that one worker scores in a row: a member and its opposite."""
    row: list[int] = []
    for i, member in enumerate(members):
        if row and not isinstance(member, Mirror):
            yield row
            row = []
        row.append(i)
    if row:
        yield row


def _streams() -> tuple[bytes, Any, Any]:
    """Return where the global random streams stand, to be compared."""
    numpy: Any = sys.modules.get("numpy")
    theirs = None if numpy is None else str(numpy.random.get_state()[2:])
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), theirs


@contextmanager
def _single() -> Iterator[None]:
    """Let torch use one thread: here, and in threads that are started within."""
    before = torch.get_num_threads()
    with Undoing(lambda: torch.set_num_threads(before)):
        torch.set_num_threads(1)
        yield
