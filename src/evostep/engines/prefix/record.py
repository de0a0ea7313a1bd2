"""Watches one forward pass, and notes what is the same for every member: see `replay`."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from evostep.engines.prefix.layout import Layout
from evostep.engines.prefix.replay import Block, Call, Fail, Placeholder, Recording
from evostep.engines.prefix.tensors import tensors_in, written
from evostep.genome.memory import key_of, storage_of
from evostep.scoring.isolation import _live_devices

# give the memory of a constant in the code, which is another one each time
_CONSTANTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)


class Recorder(TorchDispatchMode):
    """Notes the calls of a pass until an operation uses a tensor that moves.

    The pass is not disturbed: where it cannot be recorded, `fail` is called, and nothing raised. No
    memory is held that the pass itself lets go, unless it is read after the first use of a moving
    tensor.

    Args:
        layout: of the model.
        given: the tensors of the inputs, which are there in each pass, with the same values.
        room: says whether so many bytes can be kept.
        fail: called with the reason why the pass cannot be replayed.
    """

    supports_higher_order_operators = True

    def __init__(self, layout: Layout, given: Any, room: Callable[[int], bool], fail: Fail) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layout, self._room, self._report = layout, room, fail
        self._lasting = {*layout.lasting, *map(key_of, tensors_in(given))}
        self._module: str | None = None  # the outermost under way in which nothing moves
        self._used: str | None = None  # the moving tensor that was used first
        self._calls: list[Call] = []
        self._blocks: dict[int | None, Block] = {}
        self._kept: list[Block] = []
        self._nbytes = 0
        self._idle = False
        self._streams = _streams()

    @property
    def _where(self) -> str:
        return self._module or self._layout.root

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module; note its call, instead of what is called in it, if no tensor moves yet."""
        if self._idle or self._used is not None:
            return forward(*args, **kwargs)
        outer, start = self._module, len(self._calls)
        name = self._layout.names[module]
        if outer is None:
            self._check_streams()
        self._module = outer or name
        try:
            result = forward(*args, **kwargs)
            if outer is None and self._used is None:
                self._check_streams()
        finally:
            self._module = outer
        if not self._idle and self._used is None:
            torch.clear_autocast_cache()  # a replay has not cast what this call has
            del self._calls[start:]
            with torch._C._DisableTorchDispatch():
                self._note(module, name, result)
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and see what it reads and writes."""
        kwargs = kwargs or {}
        if self._idle:
            return func(*args, **kwargs)
        read = {key_of(tensor): tensor for tensor in tensors_in((args, kwargs))}
        changed = written(func, args, kwargs)
        if self._used is None:
            moving = (self._layout.moving.get(key) for key in read if key is not None)
            self._used = next(filter(None, moving), None)
            if self._used is None:
                return self._watch(func, args, kwargs, read, changed)
            self._check_streams()
        keys = {key_of(tensor) for tensor in changed}
        for key, tensor in read.items():
            self._keep(tensor, write=key in keys)
        return func(*args, **kwargs)

    def _watch(
        self, func: Any, args: Any, kwargs: Any, read: dict[int | None, Tensor], changed: Any
    ) -> Any:
        """Run an operation that uses no moving tensor, and note it."""
        for tensor in changed:
            block = self._blocks.get(key_of(tensor))
            if block is None or block.found:
                self._fail(f"{self._where} changes in place a tensor that it did not make ({func})")
        forms = [_form(tensor) for tensor in changed]
        result = func(*args, **kwargs)
        if forms != [_form(tensor) for tensor in changed]:
            self._fail(f"{self._where} changes the shape of a tensor in place ({func})")
        if self._idle:
            return result
        for tensor in tensors_in(result):
            if key_of(tensor) not in read or func in _CONSTANTS:
                self._block(tensor)
        self._note(func, str(func), result)
        return result

    def _block(self, tensor: Tensor, *, found: bool = False) -> Block | None:
        """Take note of new memory; None where there is none as such."""
        storage = storage_of(tensor)
        if storage is None:
            return None
        block = Block(StorageWeakRef(storage), self._where, found)
        self._blocks[storage._cdata] = block
        return block

    def _note(self, what: Any, name: str, result: Any) -> None:
        """Add a call that has ended."""
        try:
            found = list(tensors_in(result, strict=True))
            leaves = {id(tensor): self._leaf(tensor, name) for tensor in found}
            try:
                result = copy.deepcopy(result, dict[int, Any](leaves))
            except Exception as error:  # from a class of the user's
                kind = type(result).__name__
                raise TypeError(f"a {kind} that cannot be copied: {error}") from error
            call = Call(what, name, result, tuple(leaves.values()))
        except TypeError as error:
            call = Call(what, name, unfit=f"{name} gives {error}")
        self._calls.append(call)

    def _leaf(self, tensor: Tensor, call: str) -> Tensor:
        """Return what stands in a recording for a tensor: itself if it is there in each pass."""
        key = key_of(tensor)
        if key is None or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            raise TypeError("a tensor of another kind than the plain, dense one")
        block = self._blocks.get(key)
        if block is None and key not in self._lasting:
            block = self._block(tensor, found=True)
        if tensor.requires_grad and (block is not None or not tensor.is_leaf):
            raise TypeError("a tensor that requires gradients")
        if block is None:
            return tensor
        if type(tensor) is not Tensor:
            raise TypeError(f"a {type(tensor).__name__}, a kind of tensor of its own")
        return Placeholder(tensor, block, call)

    def _keep(self, tensor: Tensor, *, write: bool) -> None:
        """Keep the memory of a tensor that is used after the last call, as it is before."""
        block = self._blocks.get(key_of(tensor))
        if block is None or block.private:
            return
        if block.kept is None:
            block.kept = tensor.untyped_storage()
            self._kept.append(block)
            self._nbytes += block.kept.nbytes()
            if not self._room(self._nbytes):
                self._drop()
                return
        if write:
            block.kept, block.private = block.kept.clone(), True

    def finish(self, result: Any) -> Recording:
        """Return the recording of a pass that gave `result`: empty if it failed or has no room."""
        outputs = list(tensors_in(result))
        for tensor in outputs:
            self._keep(tensor, write=True)  # as a metric may
        if self._used is None:
            moving = next(iter(self._layout.moving.values()))
            self._fail(f"no operation of {self._layout.root} uses {moving}")
        if not any(isinstance(call.what, nn.Module) for call in self._calls):
            self._fail(f"{self._used} is used before any module that does not move is called")
        for call in self._calls:
            if call.unfit is not None:
                self._fail(call.unfit)
        leaves = [leaf for call in self._calls for leaf in call.leaves]
        shown = {leaf.block for leaf in leaves if isinstance(leaf, Placeholder)}
        for block in self._kept:
            if block not in shown:
                self._fail(f"{block.maker} hands on a tensor by another way than its result")
        if self._idle:
            return Recording()
        outputs = [tensor.detach().clone() for tensor in outputs]
        return Recording(tuple(self._calls), tuple(self._kept), outputs)

    def _check_streams(self) -> None:
        with torch._C._DisableTorchDispatch():
            if not self._idle and _streams() != self._streams:
                self._fail(f"{self._where} draws random numbers in eval mode")

    def _fail(self, reason: str) -> None:
        if not self._idle:
            self._report(reason)
        self._drop()

    def _drop(self) -> None:
        self._idle = True
        self._calls, self._blocks, self._kept = [], {}, []


def _streams() -> bytes:
    """Return where the global random streams stand, to be compared."""
    numpy: Any = sys.modules.get("numpy")
    devices = [state for device in _live_devices() for state in device.get_rng_state_all()]
    states = [state.tolist() for state in (torch.get_rng_state(), *devices)]
    return pickle.dumps((states, random.getstate(), numpy and numpy.random.get_state()))


def _form(tensor: Tensor) -> Any:
    return key_of(tensor), tensor.shape, tensor.stride(), tensor.storage_offset()
