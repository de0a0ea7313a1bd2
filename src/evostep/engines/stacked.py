"""What the engines that score many members at once share: what they refuse, chunks, memory."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from evostep.engines.base import CannotScore, Engine
from evostep.errors import is_out_of_memory, reason
from evostep.genome.members import Factors
from evostep.genome.point import Coordinates
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.nests import leaves
from evostep.scoring.scores import Scores, read
from evostep.spaces.workspace import Workspace

_DRAWN = 2**25  # bytes of members' own that are drawn at once
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Stacking(Engine):
    """Scores many members in one forward.

    Args:
        chunk: members at a time; None: as many as their sizes suggest.

    Raises:
        ValueError: a chunk below 1.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")


@dataclass(frozen=True)
class Own:
    """What some members have of their own.

    Attributes:
        thin: name -> A, (n, rows, r), and B, (n, columns, r).
        whole: name -> the tensor, (n, ...).
    """

    thin: dict[str, Factors]
    whole: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        thin = sum(A.nbytes + B.nbytes for A, B in self.thin.values())
        return thin + sum(tensor.nbytes for tensor in self.whole.values())

    def __getitem__(self, members: slice) -> Own:
        """Return what some of them have, as views."""
        thin = {name: (A[members], B[members]) for name, (A, B) in self.thin.items()}
        return Own(thin, {name: tensor[members] for name, tensor in self.whole.items()})


class Drawn:
    """Members drawn many at a time: their noise takes more calls than arithmetic.

    Args:
        members: all of them.
        stack: draws some of them.
        each: bytes of a member; None: one is drawn to know it.
    """

    def __init__(
        self,
        members: Sequence[Coordinates],
        stack: Callable[[Sequence[Coordinates]], Own],
        each: int | None = None,
    ) -> None:
        self._members = members
        self._stack = stack
        self._each = each
        self._places = {id(member): i for i, member in enumerate(members)}
        self._start = self._stop = 0
        self._own: Own | None = None

    def take(self, some: Sequence[Coordinates]) -> Own:
        """Return what successive members have, which are drawn with those that come next."""
        start = self._places[id(some[0])]
        stop = start + len(some)
        if self._own is None or not self._start <= start <= stop <= self._stop:
            self._own = None  # let it go before there is another
            one = self._each or self._stack(some[:1]).nbytes
            together = max(len(some), _DRAWN // max(1, one))
            self._start, self._stop = start, min(start + together, len(self._members))
            self._own = self._stack(self._members[self._start : self._stop])
        return self._own[start - self._start : stop - self._start]


class NeedsContiguousError(Exception):
    """A view met a tensor that is not contiguous, where torch's own layer returns one that is."""


@dataclass
class MemoryLayout:
    """Which memory layout a model's layers may return: a view in it may forbid the faster one.

    Attributes:
        contiguous: whether layers have to return contiguous tensors, as those of torch do.
    """

    contiguous: bool = False

    def check(self, error: Exception) -> None:
        """Do nothing, or have layers return contiguous tensors if that is what an error asks for.

        Raises:
            NeedsContiguousError: they do now: try again, see `in_either_layout`.
        """
        if not self.contiguous and "view" in str(error):
            self.contiguous = True
            raise NeedsContiguousError from error


def in_either_layout(evaluator: Evaluator, round: Round, run: Callable[[], _Result]) -> _Result:
    """Run; once more, now with contiguous tensors, where a view was impossible."""
    try:
        return run()
    except NeedsContiguousError:
        with evaluator.unchanged(round):  # the same random streams again
            return run()


def why_not_stacked(evaluator: Evaluator, workspace: Workspace) -> str | None:
    """Return why no two members can be scored at once with this fitness; None: they can be."""
    fitness = evaluator.fitness
    if not isinstance(fitness, Fitness):
        return "a bare callable scores the model as it stands: give an evostep.Fitness"
    if fitness.has_own_forward:
        return "the fitness has a forward= of its own"
    if evaluator.calibrates:
        return "calibration= estimates BatchNorm statistics member by member"
    if fitness.mode == "train":
        return "in mode='train' members would not meet the same dropout and batch statistics"
    return workspace.shared or why_opaque(fitness.model)


def why_opaque(model: nn.Module) -> str | None:
    """Return why a model's layers cannot be reached one by one; None: they can be."""
    for path, module in model.named_modules():
        where = f"module {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is a ScriptModule"
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            return f"{where} is compiled"
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            return f"{where} is a {type(module).__name__}"
    return None


def score_in_chunks(
    members: Sequence[Coordinates],
    evaluator: Evaluator,
    round: Round,
    chunk: int,
    score: Callable[[Sequence[Coordinates]], list[Scores]],
) -> list[Scores]:
    """Score members some at a time; where memory runs out, half as many at a time.

    Args:
        members: all of them.
        evaluator: whose streams and model are kept as they were, whatever `score` raises.
        round: of the generation.
        chunk: how many at a time, at first.
        score: scores some of them.

    Raises:
        CannotScore: `score` raised something else, or had no memory for a single member.
    """
    done: list[Scores] = []
    while len(done) < len(members):
        some = members[len(done) : len(done) + chunk]
        try:
            with evaluator.unchanged(round):
                done += score(some)
        except CannotScore:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise CannotScore(reason(error)) from error
            if len(some) == 1:
                raise CannotScore("there is not enough memory for one member") from error
            chunk = len(some) // 2
            _empty_caches()
    return read(done)


def over_members(forward: Callable[..., Any], *own: Any) -> Any:
    """Return what `forward` returns for all members, from what each has of its own, (n, ...)."""
    with warnings.catch_warnings():
        # an operation that vmap has to do member by member is slow, and not wrong
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.func.vmap(forward, randomness="same")(*own)


def _empty_caches() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device; a very large number where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 2**62


def even(n: int, most: int) -> int:
    """Return the size of chunks of at most `most` into which n members go evenly.

    Example:
        >>> even(256, 200)
        128
    """
    chunks = -(-n // max(most, 1))
    return -(-n // max(chunks, 1))


def positions(inputs: Any) -> int:
    """Return how many times an input goes through a layer: examples, times tokens for sequences."""
    return max((_positions(leaf) for leaf in leaves(inputs)), default=1)


def _positions(leaf: Any) -> int:
    if not isinstance(leaf, Tensor):
        return 1
    if leaf.is_floating_point():
        return math.prod(leaf.shape[:-1]) if leaf.dim() <= 3 else len(leaf)
    return leaf.numel()
