"""The head: the layer that makes the outputs which are scored, found by sending examples forward.

Every operation of one forward is noted with what its result is made of. A layer is an operation
that mixes data with weights: a product, a convolution, a lookup, whether a module makes it or a
bare ``F.linear``. The head is the last of these on the way to what is scored, so that softmax,
scales, views and other outputs do not matter.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evostep.genome.memory import byte_range, key_of
from evostep.genome.slots import Slots
from evostep.interrupts import Undoing
from evostep.scoring.fitness import Fitness
from evostep.scoring.isolation import ModuleState, listening, preserved_rng
from evostep.scoring.nests import leaves

_MIXES = re.compile("mm|mv|dot|matmul|linear|conv|embedding|dist|einsum|tensordot")
_COPIES = ("clone", "_to_copy", "_unsafe_view", "cat")  # the same numbers
_ADDS = ("add", "add_")
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Head:
    """The layer that makes the outputs.

    Attributes:
        weights: ids of its parameters; of several layers where their outputs are joined.
        layer: the linear layer or convolution whose weights they are, where one module makes it.
        is_last: whether its outputs are the network's own, each made by it once.
    """

    weights: frozenset[int]
    layer: nn.Module | None = None
    is_last: bool = False


def find_head(
    model: nn.Module,
    forward: Callable[[], Any],
    judge: Callable[[Any], object] | None = None,
    *,
    tensors: Iterable[Tensor] = (),
) -> Head | None:
    """Return the layer that makes a network's outputs, or None where no layer does.

    Args:
        model: the network.
        forward: sends some examples through it, returns its outputs; run once.
        judge: is shown outputs that are several tensors: those that it reads are meant.
        tensors: further weights than the model's own.

    Raises:
        Exception: whatever `forward` raises.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Softmax(1))
        >>> x = torch.zeros(1, 4)  # made beforehand: what a forward makes itself is no data
        >>> head = find_head(model, lambda: model(x))
        >>> head.layer is model[1], head.is_last
        (True, False)
    """
    held = (value for module in model.modules() for value in vars(module).values())
    constants = (*model.buffers(), *(value for value in held if isinstance(value, Tensor)))
    trace = _Trace({id(p): p for p in (*model.parameters(), *tensors)}.values(), constants)
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    with listening(trace.note_layer, *layers), torch.no_grad(), _uncompiled(), trace:
        outputs = forward()
        scored = [leaf for leaf in leaves(outputs) if isinstance(leaf, Tensor)]
        if len(scored) > 1 and judge is not None:
            trace.read.clear()
            judge(outputs)
            scored = [tensor for tensor in scored if trace.origin(tensor).calls in trace.read]
    return trace.head_of(scored)


_FOUND: WeakKeyDictionary[Fitness, tuple[tuple[int, ...], Head | None]] = WeakKeyDictionary()


def head_of_fitness(fitness: Fitness, tensors: Iterable[Tensor] = ()) -> Head | None:
    """Return the layer that makes what a fitness scores; None where no forward tells.

    One batch is sent forward, once for the parameters as they are, which leaves no trace.

    Args:
        fitness: its model, examples and metric.
        tensors: further weights than the model's own.
    """
    model, tensors = fitness.model, tuple(tensors)
    key = tuple(map(id, (model, *model.parameters(), *tensors)))
    found = _FOUND.get(fitness)
    if found is None or found[0] != key:
        found = _FOUND[fitness] = key, _look(fitness, tensors)
    return found[1]


def _look(fitness: Fitness, tensors: Iterable[Tensor]) -> Head | None:
    model = fitness.model
    targets: Any = None

    def judge(outputs: Any) -> object:
        return fitness.measure(outputs, targets)

    def forward() -> Any:
        nonlocal targets
        outputs = None
        for inputs, given in fitness.batches.examples(model).only([0]):
            outputs, targets = fitness.apply(model, inputs, given)
        return outputs

    with Undoing(), preserved_rng():
        try:
            with Undoing(ModuleState(model).restore), fitness.scoring():
                return find_head(model, forward, judge, tensors=tensors)
        except Exception:  # whatever a model or a metric raises: scoring will tell
            return None


def with_head(slots: Slots, fitness: object) -> Slots:
    """Return slots that know the head by a forward; as they were where none tells.

    Args:
        slots: with the head that the model declares, if it does.
        fitness: a `Fitness`, or anything else, which tells nothing.
    """
    if not isinstance(fitness, Fitness):
        return slots
    head = head_of_fitness(fitness, slots.tensors.values())
    weights = head.weights if head is not None else frozenset()
    names = frozenset(name for name, tensor in slots.live.items() if id(tensor) in weights)
    return replace(slots, head=names) if names else slots


@dataclass
class _Call:
    """A layer at work.

    Attributes:
        weights: ids of its parameters.
        sizes: of these, among them the number of its outputs.
        before: calls, by number, that its inputs went through.
        count: how many numbers it put out.
        layer: the module that did it.
    """

    weights: set[int]
    sizes: set[int]
    before: frozenset[int]
    count: int
    layer: nn.Module | None = None


@dataclass(frozen=True)
class _Origin:
    """What a tensor is made of.

    Attributes:
        data: whether examples are in it.
        weights: ids of the parameters that it is made of, where no examples are.
        calls: the last layers, by number, that the examples in it went through.
        own: the call of which it is the very outputs.
    """

    data: bool = False
    weights: frozenset[int] = frozenset()
    calls: frozenset[int] = frozenset()
    own: int | None = None


@dataclass
class _Memory:
    """The parameters on one memory: (first entry, entry after the last, id) of each."""

    spans: list[tuple[int, int, int]] = field(default_factory=list)

    def origin(self, tensor: Tensor) -> _Origin:
        first, end = _span(tensor)
        return _Origin(weights=frozenset(i for a, b, i in self.spans if a < end and first < b))


class _Trace(TorchDispatchMode):
    """Notes of every operation what its result is made of.

    Origins are kept by memory: views and writes into a part share them.

    Args:
        weights: tensors that layers mix data with.
        constants: other tensors that are no data.

    Attributes:
        read: the calls behind what operations other than copies took in.
    """

    def __init__(self, weights: Iterable[Tensor], constants: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: set[frozenset[int]] = set()
        self._calls: list[_Call] = []
        self._memories: dict[int, _Memory] = {}
        self._origins: dict[int, _Origin] = {_key(tensor): _Origin() for tensor in constants}
        for tensor in weights:
            memory = self._memories.setdefault(_key(tensor), _Memory())
            memory.spans.append((*_span(tensor), id(tensor)))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        taken = [*_tensors((*args, *kwargs.values()))]
        origins = [self.origin(tensor) for tensor in taken]  # before it is written to
        keys = {_key(tensor) for tensor in taken}
        result = func(*args, **kwargs)
        made = [*_tensors(result if isinstance(result, tuple | list) else (result,))]
        if made:
            origin = self._made_of(func, taken, origins, made[0], keys)
            for tensor in made:
                if _key(tensor) not in self._memories:
                    self._origins[_key(tensor)] = origin
        return result

    def origin(self, tensor: Tensor) -> _Origin:
        """Return what a tensor is made of."""
        key = _key(tensor)
        if key in self._memories:
            return self._memories[key].origin(tensor)
        return self._origins.get(key, _Origin(data=True))  # nobody made it: it was handed in

    def _made_of(
        self, func: Any, taken: list[Tensor], origins: list[_Origin], made: Tensor, keys: set[int]
    ) -> _Origin:
        name = func._schema.name.partition("::")[2]
        data = [origin for origin in origins if origin.data]
        weights = [(t, o) for t, o in zip(taken, origins, strict=True) if o.weights and not o.data]
        union = frozenset().union(*(o.weights for _, o in weights))
        if not data:
            return _Origin(weights=union)
        calls = frozenset().union(*(origin.calls for origin in data))
        if any(_mixes(name, tensor) for tensor, _ in weights):
            before = calls.union(*(self._calls[i].before for i in calls))
            sizes = {size for tensor, _ in weights for size in tensor.shape}
            self._calls.append(_Call(set(union), sizes, before, made.numel()))
            last = len(self._calls) - 1
            return _Origin(True, calls=frozenset([last]), own=last)
        own = data[0].own if len(data) == 1 else None
        if own is not None and name in _ADDS and weights and _is_vector(weights[0][0]):
            self._calls[own].weights |= union  # its bias
            return _Origin(True, calls=calls, own=own)
        viewed = _key(made) in keys and not func._schema.is_mutable
        same = not weights and (viewed or name in _COPIES)
        if not same:
            self.read.update(origin.calls for origin in data)
        return _Origin(True, calls=calls, own=own if same else None)

    def note_layer(self, module: nn.Module, _: Any, outputs: Any) -> None:
        """Take note, as a forward hook, of the module that made the last call."""
        own = self.origin(outputs).own if isinstance(outputs, Tensor) else None
        if own is not None:
            self._calls[own].layer = module

    def head_of(self, scored: list[Tensor]) -> Head | None:
        """Return the head of these outputs."""
        origins = [self.origin(tensor) for tensor in scored]
        near = frozenset().union(*(origin.calls for origin in origins))
        # of several that are joined, those with an output for each class
        classes = {size for tensor in scored for size in tensor.shape[1:] or (1,)}
        last = [i for i in near if classes & self._calls[i].sizes] or [*near]
        last = [i for i in last if not any(self._is_before(i, j) for j in last)]
        if not last:
            return None
        weights = frozenset().union(*(self._calls[i].weights for i in last))
        call = self._calls[last[0]]
        if len(last) > 1 or call.layer is None:
            return Head(weights)
        once = sum(other.layer is call.layer for other in self._calls) == 1
        whole = len(scored) == 1 and scored[0].numel() == call.count
        return Head(weights, call.layer, once and whole and origins[0].own == last[0])

    def _is_before(self, i: int, j: int) -> bool:
        """Return whether call `j` builds on the layer of call `i`, which is another one."""
        own = self._calls[i].weights
        before = (self._calls[k].weights for k in self._calls[j].before)
        return own != self._calls[j].weights and own in before


def _mixes(name: str, weight: Tensor) -> bool:
    """Return whether an operation makes of data and a weight what a layer does."""
    if name in ("mul", "mul_"):  # which a sum follows; a scale has one entry for each output
        return not _is_vector(weight)
    return _MIXES.search(name) is not None


def _is_vector(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) <= 1


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments, or results, and in lists there."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from (item for item in value if isinstance(item, Tensor))


def _key(tensor: Tensor) -> int:
    """Return what tells memories apart."""
    key = key_of(tensor)
    return id(tensor) if key is None else key


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first entry in its memory, and the one after the last, in bytes."""
    return (0, 1) if key_of(tensor) is None else byte_range(tensor)


def _uncompiled() -> Any:
    """Return a context in which compiled modules run as they were written."""
    if "torch._dynamo" not in sys.modules:  # whose import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
