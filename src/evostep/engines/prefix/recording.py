"""Watches one forward pass, and notes what is the same for every member: see `replay`."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evostep.engines.prefix.replay import (
    Block,
    Call,
    Leaf,
    Recording,
    arguments,
    key_of,
    storage_of,
    tensors_in,
    written,
)
from evostep.scoring.isolation import _live_devices

_Memory = dict[int, torch.UntypedStorage]
# give the memory of a constant in the code, which is another one each time
_CONSTANTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)


class _Frame:
    """A call of a module that is under way.

    Attributes:
        read: blocks of others that it has used, by key.
        wrote: whether it has written to any of them.
        real: whether a moving tensor was used in it, so that it runs for each member.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.read: _Memory = {}
        self.wrote = False
        self.real = False


class Recorder(TorchDispatchMode):
    """Notes the calls of a pass until an operation uses a tensor that moves.

    The pass is not disturbed: what cannot be recorded is a `failure`, not an exception. No memory
    is held that the pass itself lets go, unless it is read after the first use of a moving tensor.

    Args:
        names: of the modules whose calls are noted as a whole.
        root: name of the model.
        moving: keys of the tensors that move -> their names.
        lasting: keys of tensors that are there in each pass, with the same values: those of the
            inputs, and of parameters and buffers that do not move.
        room: says whether so many bytes can be kept.

    Attributes:
        failure: why the pass cannot be replayed.
        full: whether there was no room for it.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        names: Mapping[nn.Module, str],
        root: str,
        moving: Mapping[int, str],
        lasting: Collection[int | None],
        room: Callable[[int], bool],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.failure: str | None = None
        self.full = False
        self._names, self._root, self._room = names, root, room
        self._moving, self._lasting = moving, lasting
        self._calls: list[Call] = []
        self._blocks: dict[int, Block] = {}
        self._frame: _Frame | None = None
        self._used: str | None = None  # the moving tensor that was used first
        self._nbytes = 0
        self._idle = self._aside = False
        self._streams = _streams()

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module, and note its call."""
        if self._idle or self._frame is not None or self._used is not None:
            return forward(*args, **kwargs)
        self._check_streams()
        self._frame = frame = _Frame(self._names[module])
        try:
            result = forward(*args, **kwargs)
            if not frame.real:
                self._check_streams()
        finally:
            self._frame = None
        if not frame.real:
            torch.clear_autocast_cache()  # a replay has not cast what this call has
            self._note(module, frame.name, result)
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and see what it reads and writes."""
        kwargs = kwargs or {}
        if self._idle or self._aside:
            return func(*args, **kwargs)
        found = (storage_of(tensor) for tensor in arguments(args, kwargs))
        memory: _Memory = {storage._cdata: storage for storage in found if storage is not None}
        if self._used is None:
            self._end(memory)
        if self._used is None:
            return self._watch(func, args, kwargs, memory)
        keys = {key_of(tensor) for tensor in written(func, args, kwargs)}
        for key, storage in memory.items():
            self._read(key, storage, write=key in keys)
        return func(*args, **kwargs)

    def _watch(self, func: Any, args: Any, kwargs: Any, memory: _Memory) -> Any:
        """Run an operation that uses no moving tensor; note it, unless it is part of a call."""
        frame = self._frame
        for key, storage in memory.items():
            if key not in self._blocks and key not in self._lasting:
                self._blocks[key] = Block(storage, found=True)
            if frame is not None and key in self._blocks and self._blocks[key].inside is not frame:
                frame.read[key] = storage
        changed = self._check_written(func, args, kwargs)
        result = func(*args, **kwargs)
        if any(form != _form(tensor) for tensor, form in changed):
            self._fail(f"{self._where} changes the shape of a tensor in place ({func})")
        if self._idle:
            return result
        for tensor in tensors_in(result, strict=False):
            made = storage_of(tensor)
            if made is not None and (made._cdata not in memory or func in _CONSTANTS):
                self._blocks[made._cdata] = Block(made, frame)
        if frame is None:
            self._note(func, str(func), result)
        return result

    def _check_written(self, func: Any, args: Any, kwargs: Any) -> list[tuple[Tensor, Any]]:
        """Return the tensors of others that an operation is about to change, and their forms."""
        others = []
        for tensor in written(func, args, kwargs):
            block = self._blocks.get(key_of(tensor) or 0)
            if block is None or block.found:
                self._fail(f"{self._where} changes in place a tensor that it did not make ({func})")
            elif self._frame is None or block.inside is not self._frame:
                others.append((tensor, _form(tensor)))
        if self._frame is not None and others:
            self._frame.wrote = True
        return others

    def _note(self, what: Any, name: str, result: Any) -> None:
        """Add a call that has ended."""
        if self._idle:
            return
        try:
            leaves = {id(tensor): self._leaf(tensor) for tensor in tensors_in(result)}
        except TypeError as error:
            self._fail(f"{name} gives {error}")
            return
        try:
            result = copy.deepcopy(result, dict[int, Any](leaves))
        except Exception as error:  # from a class of the user's
            self._fail(f"{name} gives a {type(result).__name__} that cannot be copied: {error}")
            return
        self._calls.append(Call(what, name, result, tuple(leaves.values())))

    def _leaf(self, tensor: Tensor) -> Leaf:
        storage = storage_of(tensor)
        if storage is None or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            raise TypeError("a tensor of another kind than the plain, dense one")
        block = self._blocks.get(storage._cdata)
        if block is None and storage._cdata not in self._lasting:
            self._blocks[storage._cdata] = block = Block(storage, found=True)
        if tensor.requires_grad and (block is not None or not tensor.is_leaf):
            raise TypeError("a tensor that requires gradients")
        if block is not None:
            if type(tensor) is not Tensor:
                raise TypeError(f"a {type(tensor).__name__}, a kind of tensor of its own")
            block.inside = None
        return Leaf(tensor, block)

    def _end(self, memory: _Memory) -> None:
        """Note no further call if one of these, which are about to be used, moves."""
        self._used = next((self._moving[key] for key in memory if key in self._moving), None)
        if self._used is None:
            return
        self._check_streams()
        frame = self._frame
        if frame is not None:  # it holds no moving tensor, and was given one
            frame.real = True
            if frame.wrote:
                self._fail(f"{frame.name} changes its inputs in place, and then uses {self._used}")
            for key, storage in frame.read.items():
                self._read(key, storage)

    def _read(self, key: int, storage: torch.UntypedStorage, *, write: bool = False) -> None:
        """Keep a block that is read after the end, as it was at the end."""
        block = self._blocks.get(key)
        if block is None or block.private:
            return
        if block.inside is not None:
            if not block.inside.real:
                name = block.inside.name
                self._fail(f"{name} hands on a tensor by another way than its result")
            return
        if block.kept is None:
            self._nbytes += storage.nbytes()
            if not self._room(self._nbytes):
                self.full = True
                self._drop()
                return
        if write:
            block.kept, block.private = storage.clone(), True
        elif block.kept is None:
            block.kept = storage

    def finish(self, result: Any) -> Recording | None:
        """Return the recording of a pass that gave `result`; None: it failed, or has no room."""
        outputs = list(tensors_in(result, strict=False))
        for tensor in outputs:
            storage = storage_of(tensor)
            if storage is not None:
                self._read(storage._cdata, storage, write=True)  # as a metric may
        if not self._idle and self._used is None:
            self._fail(f"no operation of {self._root} uses {next(iter(self._moving.values()))}")
        if not any(isinstance(call.what, nn.Module) for call in self._calls):
            self._fail(f"{self._used} is used before any module that does not move is called")
        if self._idle:
            return None
        for call in self._calls:
            for leaf in call.leaves:
                if leaf.block is not None and leaf.block.kept is not None:
                    leaf.tensor = leaf.on(leaf.block.kept)
        return Recording(
            tuple(self._calls), self._nbytes, [tensor.detach().clone() for tensor in outputs]
        )

    @property
    def _where(self) -> str:
        return self._frame.name if self._frame is not None else self._root

    def _check_streams(self) -> None:
        if self._idle:
            return
        self._aside = True  # what follows are operations, too
        streams = _streams()
        self._aside = False
        if streams != self._streams:
            self._fail(f"{self._where} draws random numbers in eval mode")

    def _fail(self, reason: str) -> None:
        if not self._idle:
            self.failure = reason
        self._drop()

    def _drop(self) -> None:
        self._idle = True
        self._calls, self._blocks = [], {}


def _streams() -> tuple[Any, ...]:
    """Return where the global random streams stand, to be compared."""
    numpy: Any = sys.modules.get("numpy")
    devices = [state for device in _live_devices() for state in device.get_rng_state_all()]
    states = [state.tolist() for state in (torch.get_rng_state(), *devices)]
    python, others = random.getstate(), numpy.random.get_state() if numpy is not None else (0, 0)
    return states, python, str(others[1]), others[2:]


def _form(tensor: Tensor) -> Any:
    return key_of(tensor), tensor.shape, tensor.stride(), tensor.storage_offset()
