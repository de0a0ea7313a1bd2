"""Replays what a model computes before it first uses a tensor that moves.

A forward pass is a sequence of calls: of the largest modules that hold no moving tensor, and of
single operations between them. All calls that end before an operation reads a moving tensor give
the same for every member. A `Recorder` notes them in one pass and keeps those of their results
that are read later; `Replay` goes through another pass on the same inputs, and answers the same
calls, in the same order, without running them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from evostep.engines.base import CannotScore
from evostep.errors import reason

_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


class Block:
    """The memory of tensors that were there before a moving tensor was used.

    Attributes:
        inside: the call that made it, as long as no call's result shows it; None: no such call.
        found: whether it was there before the pass.
        kept: the memory itself, with what it held when the first moving tensor was used; None
            where nobody read it later.
        private: whether it was written to later, so that each pass needs a copy of its own.
    """

    def __init__(self, storage: torch.UntypedStorage, inside: Any = None, found: bool = False):
        self._alive = StorageWeakRef(storage)  # so that its key is not given to another one
        self.inside = inside
        self.found = found
        self.kept: torch.UntypedStorage | None = None
        self.private = False


class Leaf:
    """A tensor in the result of a call: how it lies in its block; without one, the tensor."""

    def __init__(self, tensor: Tensor, block: Block | None) -> None:
        self.block = block
        self.dtype, self.device = tensor.dtype, tensor.device
        self.size, self.stride = tensor.shape, tensor.stride()
        self.offset = tensor.storage_offset()
        self.tensor = tensor if block is None else None

    def on(self, storage: torch.UntypedStorage) -> Tensor:
        """Return the tensor in some memory."""
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return empty.set_(storage, self.offset, self.size, self.stride)


@dataclass(frozen=True)
class Call:
    """A call of a module or of an operation, and its result with leaves in place of tensors."""

    what: Any
    name: str
    result: Any
    leaves: tuple[Leaf, ...]

    def fill(self, handed: dict[int, Any]) -> Any:
        """Return the result with tensors in the leaves' place, by the leaves' ids."""
        if isinstance(self.result, Leaf):
            return handed[id(self.result)]
        return copy.deepcopy(self.result, handed)


@dataclass
class Recording:
    """The calls of one pass that are the same for all members.

    Attributes:
        nbytes: what is kept for it.
        outputs: what the pass gave in the end, until a replay has given the same.
    """

    calls: tuple[Call, ...]
    nbytes: int
    outputs: list[Tensor] | None


class Dropped(Tensor):
    """Stands for a tensor that nobody read: its form without memory. Reading it is an error."""

    call: str
    replay: Replay
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, leaf: Leaf, call: str, replay: Replay) -> Dropped:
        """Make one of the leaf's form."""
        self: Dropped = Tensor._make_wrapper_subclass(
            cls,
            leaf.size,
            strides=leaf.stride,
            storage_offset=leaf.offset,
            dtype=leaf.dtype,
            device=leaf.device,
        )
        self.call, self.replay = call, replay
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse."""
        found = next(t for t in arguments(args, kwargs or {}) if isinstance(t, Dropped))
        raise found.replay.fail(
            f"{func} reads what {found.call} gave, which nothing read when it was recorded"
        )


class Replay(TorchDispatchMode):
    """Answers the calls of a recording in a pass on the same inputs.

    In the pass CannotScore is raised where it goes another way than the recorded one; `finish`
    raises it again, should somebody have swallowed it.
    """

    supports_higher_order_operators = True

    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.failure: str | None = None
        self._recording, self._calls = recording, recording.calls
        self._position = 0
        self._copies: dict[Block, torch.UntypedStorage] = {}
        leaves = [leaf for call in self._calls for leaf in call.leaves]
        blocks = {leaf.block for leaf in leaves if leaf.block is not None}
        self._shared = {b.kept._cdata for b in blocks if b.kept is not None and not b.private}
        self._aside = False

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer a module's call, or run it where it was not recorded."""
        if self._position == len(self._calls):
            return forward(*args, **kwargs)
        torch.clear_autocast_cache()  # as it was after the call when that was recorded
        return self._answer(module)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer an operation, or run it where it was not recorded."""
        kwargs = kwargs or {}
        if self._aside:
            return func(*args, **kwargs)
        if self._position < len(self._calls):
            return self._answer(func)
        if any(key_of(tensor) in self._shared for tensor in written(func, args, kwargs)):
            raise self.fail(f"{func} changes in place what it did not when recorded")
        return func(*args, **kwargs)

    def _answer(self, what: Any) -> Any:
        call = self._calls[self._position]
        if call.what is not what or self.failure is not None:
            raise self.fail(f"{call.name} was not called where it was when recorded")
        self._position += 1
        self._aside = True  # what follows are operations, too
        handed: dict[int, Any] = {id(leaf): self._hand(leaf, call.name) for leaf in call.leaves}
        self._aside = False
        return call.fill(handed)

    def _hand(self, leaf: Leaf, name: str) -> Tensor:
        block = leaf.block
        if leaf.tensor is None:
            return Dropped(leaf, name, self)
        if block is None:
            if type(leaf.tensor) is Tensor:  # a view: autograd makes its own of what it is given
                return leaf.on(leaf.tensor.untyped_storage())
            return leaf.tensor if leaf.tensor.requires_grad else leaf.tensor.detach()
        if not block.private:
            return leaf.tensor.detach()
        if block not in self._copies:
            assert block.kept is not None, "it was kept when it was written to"
            self._copies[block] = block.kept.clone()
        return leaf.on(self._copies[block])

    def finish(self, outputs: Any) -> None:
        """Check a pass that gave `outputs`.

        Raises:
            CannotScore: it was not the recorded one.
        """
        if self.failure is not None:
            raise self.fail(self.failure)
        if self._position < len(self._calls):
            raise self.fail(f"{self._calls[self._position].name} was called when recorded, not now")
        expected = self._recording.outputs
        if expected is not None:
            given = list(tensors_in(outputs, strict=False))
            if len(given) != len(expected) or not all(map(_same, given, expected)):
                raise self.fail("in eval mode, the same weights gave other outputs a second time")
            self._recording.outputs = None

    def blame(self, error: Exception) -> str | None:
        """Return why an error that a pass raised is the replay's; None: it is the model's own."""
        if self.failure is not None:
            return self.failure
        if self._position < len(self._calls):
            name = self._calls[self._position].name
            return f"before {name}, a replay raised {reason(error)}"
        return None

    def fail(self, reason: str) -> CannotScore:
        """Return the exception to raise; whoever swallows it finds the reason here."""
        self.failure = self.failure or reason
        return CannotScore(self.failure)


def tensors_in(value: Any, *, strict: bool = True) -> Iterator[Tensor]:
    """Find the tensors in nested tuples, lists, mappings and dataclasses.

    Raises:
        TypeError: anything else, in which tensors may hide; passed over where not `strict`.

    Example:
        >>> [len(tensor) for tensor in tensors_in({"x": torch.ones(2), "y": [torch.ones(3), "z"]})]
        [2, 3]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, strict=strict)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item, strict=strict)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name), strict=strict)
    elif strict and not isinstance(value, _ATOMS):
        raise TypeError(f"a {type(value).__name__}, in which tensors cannot be found")


def arguments(args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Find the tensors among the arguments of an operation."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            for item in value:
                if isinstance(item, Tensor):
                    yield item


def written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Find the tensors that an operation writes to."""
    positions = _writes(func)
    if positions:
        names = [names for names in kwargs if names in positions]
        chosen = [value for i, value in enumerate(args) if i in positions]
        yield from arguments(chosen, {name: kwargs[name] for name in names})


@functools.cache
def _writes(func: Any) -> frozenset[int | str]:
    """Return the positions and the names of the arguments that an operation writes to."""
    schema = getattr(func, "_schema", None)  # operators of higher order have none
    positions: set[int | str] = set()
    for i, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            positions |= {i, argument.name}
    return frozenset(positions)


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the memory of a tensor; None where there is none as such (a sparse one)."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def key_of(tensor: Tensor) -> int | None:
    """Return a number that tensors on the same memory share; None where there is none as such."""
    storage = storage_of(tensor)
    return None if storage is None else storage._cdata


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same values, NaN being the same as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same = (one == other) | ((one != one) & (other != other))
    return bool(same.all())
