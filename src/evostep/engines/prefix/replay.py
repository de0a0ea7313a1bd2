"""Replays what a model computes before it first uses a tensor that moves.

A forward pass is a sequence of calls: of the largest modules that end before an operation reads a
moving tensor, and of single operations between them. They give the same for every member. A
`Recorder` notes them in one pass, and keeps those of their results that are read later; `Replay`
goes through another pass on the same inputs, and answers the same calls, in the same order,
without running them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from evostep.engines.base import CannotScore
from evostep.engines.prefix.tensors import tensors_in, written
from evostep.genome.memory import key_of

Fail = Callable[[str], CannotScore]  # takes note of a reason, and returns what to raise


@dataclass(eq=False)
class Block:
    """The memory of tensors that were there before a moving tensor was used.

    Attributes:
        alive: keeps its key from being given to another one, and not the memory.
        maker: name of the module in which it was made.
        found: whether it was there before the pass.
        kept: the memory itself, with what it held when the first moving tensor was used; None
            where nobody read it later.
        private: whether it was written to later, so that each pass needs a copy of its own.
    """

    alive: StorageWeakRef
    maker: str
    found: bool = False
    kept: torch.UntypedStorage | None = None
    private: bool = False


class Placeholder(Tensor):
    """Stands for a tensor: its form without its memory. Reading it is an error.

    In a recording it takes the place of each tensor that the pass made; in a replay, that of those
    which nobody read later.

    Args:
        like: the tensor.
        block: its memory.
        call: name of the call that gave it.
        fail: called when it is read; what it returns is raised.
    """

    block: Block
    call: str
    fail: Fail
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls, like: Tensor, block: Block, call: str, fail: Fail = CannotScore
    ) -> Placeholder:
        """Make one."""
        form: dict[str, Any] = {"strides": like.stride(), "storage_offset": like.storage_offset()}
        form |= {"dtype": like.dtype, "device": like.device}
        self: Placeholder = Tensor._make_wrapper_subclass(cls, like.shape, **form)
        self.block, self.call, self.fail = block, call, fail
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse."""
        found = next(t for t in tensors_in((args, kwargs)) if isinstance(t, Placeholder))
        raise found.fail(
            f"{func} reads what {found.call} gave, which nothing read when it was recorded"
        )


@dataclass(frozen=True)
class Call:
    """A call of a module or of an operation.

    Attributes:
        what: the module or the operation.
        name: in messages.
        result: with placeholders for the tensors that the pass made.
        leaves: the tensors in the result.
        unfit: why it cannot be replayed.
    """

    what: Any
    name: str
    result: Any = None
    leaves: tuple[Tensor, ...] = ()
    unfit: str | None = None


@dataclass
class Recording:
    """The calls of one pass that are the same for all members; none where it has no room.

    Attributes:
        calls: in their order.
        kept: the blocks that are read after the last call.
        outputs: what the pass gave in the end, until a replay has given the same.
        inputs: held so that their id is not given to others.
        versions: of the inputs, counting what is written to them.
    """

    calls: tuple[Call, ...] = ()
    kept: tuple[Block, ...] = ()
    outputs: list[Tensor] | None = None
    inputs: Any = None
    versions: Sequence[int] = ()

    def __post_init__(self) -> None:
        storages = [(b.kept, b.private) for b in self.kept if b.kept is not None]
        self.nbytes = sum(storage.nbytes() for storage, _ in storages)
        self.shared = {storage._cdata for storage, private in storages if not private}


class Replay(TorchDispatchMode):
    """Answers the calls of a recording in a pass on the same inputs.

    Args:
        recording: of another pass.
        fail: called where this pass goes another way; what it returns is raised.
    """

    supports_higher_order_operators = True

    def __init__(self, recording: Recording, fail: Fail) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recording, self._fail = recording, fail
        self._copies: dict[Block, torch.UntypedStorage] = {}
        self._position = 0

    @property
    def next(self) -> Call | None:
        """The call to be answered next; None: the rest of the pass is a member's own."""
        calls = self._recording.calls
        return calls[self._position] if self._position < len(calls) else None

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer a module's call, or run it where what it does was recorded, if anything."""
        call = self.next
        if call is None or call.what is not module:
            return forward(*args, **kwargs)
        torch.clear_autocast_cache()  # as it was after the call when that was recorded
        with torch._C._DisableTorchDispatch():
            return self._answer(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer an operation, or run it where it was not recorded."""
        kwargs = kwargs or {}
        call = self.next
        if call is not None:
            if call.what is not func:
                raise self._fail(f"{call.name} was not called where it was when recorded")
            return self._answer(call)
        if any(key_of(tensor) in self._recording.shared for tensor in written(func, args, kwargs)):
            raise self._fail(f"{func} changes in place what it did not when recorded")
        return func(*args, **kwargs)

    def _answer(self, call: Call) -> Any:
        self._position += 1
        return copy.deepcopy(call.result, {id(leaf): self._hand(leaf) for leaf in call.leaves})

    def _hand(self, leaf: Tensor) -> Tensor:
        """Return a tensor for a leaf: a new one, which autograd may make a view of its own."""
        if not isinstance(leaf, Placeholder):
            return _on(leaf.untyped_storage(), leaf) if type(leaf) is Tensor else leaf
        block = leaf.block
        if block.kept is None:
            return Placeholder(leaf, block, leaf.call, self._fail)
        if not block.private:
            return _on(block.kept, leaf)
        if block not in self._copies:
            self._copies[block] = block.kept.clone()
        return _on(self._copies[block], leaf)

    def finish(self, outputs: Any) -> None:
        """Check a pass that gave `outputs`.

        Raises:
            CannotScore: it was not the recorded one.
        """
        if self.next is not None:
            raise self._fail(f"{self.next.name} was called when recorded, not now")
        if self._recording.outputs is None:
            return
        try:
            torch.testing.assert_close(
                list(tensors_in(outputs)), self._recording.outputs, rtol=0, atol=0, equal_nan=True
            )
        except AssertionError:
            raise self._fail(
                "in eval mode, the same weights gave other outputs a second time"
            ) from None
        self._recording.outputs = None


def _on(storage: torch.UntypedStorage, form: Tensor) -> Tensor:
    """Return a tensor in some memory that lies there as another one does in its own."""
    empty = torch.empty(0, dtype=form.dtype, device=form.device)
    return empty.set_(storage, form.storage_offset(), form.shape, form.stride())
