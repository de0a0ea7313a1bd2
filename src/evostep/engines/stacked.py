"""What the engines that score many members at once share: what they refuse, chunks, memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evostep.engines.base import CannotScore, Engine, Judge, Outcome, failure, read
from evostep.errors import reason
from evostep.fitness import Fitness, Pending
from evostep.spaces.base import Coordinates


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


def why_not_stacked(judge: Judge) -> str | None:
    """Say why no two members can be scored at once with this fitness; None: they can be."""
    fitness = judge.fitness
    if not isinstance(fitness, Fitness):
        return "a bare callable scores the model as it stands: give an evostep.Fitness"
    if fitness.has_own_forward:
        return "the fitness has a forward= of its own"
    if judge.calibrates:
        return "calibration= estimates BatchNorm statistics member by member"
    if fitness.mode == "train":
        return "in mode='train' members would not meet the same dropout and batch statistics"
    return why_opaque(fitness.model)


def why_opaque(model: nn.Module) -> str | None:
    """Say why a model's layers cannot be reached one by one; None: they can be."""
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
    judge: Judge,
    chunk: int,
    score: Callable[[Sequence[Coordinates]], list[Pending | Exception]],
) -> list[Outcome]:
    """Score members some at a time; where memory runs out, half as many at a time.

    Args:
        members: all of them.
        judge: whose streams and model are kept as they were, whatever `score` raises.
        chunk: how many at a time, at first.
        score: scores some of them.

    Raises:
        CannotScore: `score` raised something else, or had no memory for a single member.
    """
    done: list[Pending | Outcome] = []
    while len(done) < len(members):
        some = members[len(done) : len(done) + chunk]
        try:
            with judge.unchanged():
                found = score(some)
            done += [failure(one) if isinstance(one, Exception) else one for one in found]
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


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out; the CPU's has no type of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _empty_caches() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Give the memory that is free on a device; a very large number where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 2**62


def even(n: int, most: int) -> int:
    """Give the size of chunks of at most `most` into which n members go evenly.

    Example:
        >>> even(256, 200)
        128
    """
    chunks = -(-n // max(most, 1))
    return -(-n // max(chunks, 1))


def positions(inputs: Any) -> int:
    """Give how many times an input goes through a layer: examples, times tokens for sequences."""
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple | list):
        return max((positions(part) for part in inputs), default=1)
    if not isinstance(inputs, Tensor):
        return 1
    if inputs.is_floating_point():
        return math.prod(inputs.shape[:-1]) if inputs.dim() <= 3 else len(inputs)
    return inputs.numel()
