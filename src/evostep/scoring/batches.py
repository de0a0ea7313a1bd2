"""Batches: a user's, read, kept where they are wanted, handed out and sent forward."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from evostep.errors import InputError, warn
from evostep.interrupts import Undoing
from evostep.noise import derive_seed
from evostep.scoring.isolation import Streams
from evostep.scoring.nests import (
    batch_size,
    fresh,
    leaves,
    map_leaves,
    map_tensors,
    tensors_of,
    versions,
)
from evostep.scoring.placing import ATOMS, Placing, capacity, model_device, move, tensor_of
from evostep.scoring.splitting import Signature, Weighted, as_numbers, split_batch, weights_of

Forward = Callable[[nn.Module, Any], tuple[Any, Any]]
Batch = tuple[Any, Any]  # (inputs, targets)
Keep = Literal["device", "host", "stream"]

_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
# How much is read of what does not say how long it is. Fixed: a resumed run reads the same.
MOST_EXAMPLES = 2**17
MOST_BYTES = 2**31


@dataclass(frozen=True)
class Examples:
    """The batches on which one generation scores everybody, each (inputs, targets).

    Iterating hands them out, ready for the model, in containers of their own each time.

    Attributes:
        batches: as they are kept; of a stream, tensors without memory that show their shapes.
        count: how many examples they have.
        owner: who hands them out; None: they are handed out as they are.
        numbers: of the batches, in the order of the stream.
    """

    batches: tuple[Batch, ...]
    count: int
    owner: Batches | None = None
    numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        if self.owner is None:
            return iter([fresh(batch) for batch in self.batches])
        return self.owner.hand_out(self)

    def __getitem__(self, i: int) -> Batch:
        """Hand out one batch."""
        return next(iter(self.only([i])))

    def only(self, which: Sequence[int]) -> Examples:
        """Return some of the batches, by their places here, rising."""
        numbers = tuple(self.numbers[i] for i in which) if self.numbers else ()
        return replace(self.with_batches([self.batches[i] for i in which]), numbers=numbers)

    def with_batches(self, batches: Sequence[Batch]) -> Examples:
        """Return other batches, handed out as these are."""
        count = sum(batch_size(*batch) for batch in batches)
        return replace(self, batches=tuple(batches), count=count, numbers=())

    @property
    def streamed(self) -> bool:
        """Whether they are read again each time they are handed out."""
        return self.owner is not None and self.owner.keep == "stream"

    @property
    def stable(self) -> bool:
        """Whether the very same tensors are handed out each time."""
        return self.owner is None or not (self.streamed or self.owner.moves)

    @property
    def weighted(self) -> bool:
        """Whether examples have weights."""
        return any(isinstance(targets, Weighted) for _, targets in self.batches)


class Batches:
    """A user's batches: read once, kept or read again, and sent forward through a model.

    What is kept are copies. They are handed out in fresh containers, and are put back as they were
    where a forward or a metric has written into them: torch's counters tell, and for what these do
    not see, such as ``x.data`` or ``x.numpy()``, the values after the first scoring.

    Args:
        source: a list, a DataLoader that does not shuffle, or any iterable that can be read again;
            an iterator where `most` says how many to read.
        forward: ``forward(model, batch) -> (outputs, targets)`` for batches of any form; None:
            batches are split as `split_batch` says.
        keep: ``"device"``: on the model's; ``"host"``: in host memory, moved batch by batch;
            ``"stream"``: read again, in the same order, each time.
        most: how many batches to read; None: all, where there is an end. Of an iterator they are
            read at once, and kept.
        metric: that takes targets which are one tensor; None: targets stay as they are.

    Raises:
        ValueError: batches that can be read only once, that shuffle, or that are none.
    """

    def __init__(
        self,
        source: Iterable[Any],
        forward: Forward | None = None,
        *,
        keep: Keep = "device",
        most: int | None = None,
        metric: str | None = None,
    ) -> None:
        if keep not in get_args(Keep):
            raise InputError(f"keep must be one of {', '.join(get_args(Keep))}, got {keep!r}")
        if most is not None and most < 1:
            raise InputError(f"max_batches must be at least 1, got {most}")
        if isinstance(source, Iterator) and most is not None and keep != "stream":
            source = _taken(source, most)
        _refuse_unrepeatable(source)
        self.forward, self.keep = forward, keep
        self._source, self._most, self._metric = source, most, metric
        self._kept: list[Batch] | None = None
        self._prints: list[str] = []  # of a stream's batches
        self._signature = Signature()
        self._end: int | None = most  # before which batch reading stops
        self._device = torch.device("cpu")
        self._careful = True  # until it is known that nobody writes into what is handed out
        self._writer: str | None = None
        self._forward: str | None = None  # who got what was handed out
        self._told = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read: a pickle has the source, which is read again."""
        return {
            **vars(self),
            "_kept": None,
            "_prints": [],
            "_end": self._most,
            "_careful": True,
            "_forward": None,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Batches:
        """Share the source and what was read of it, which nobody changes."""
        return copy.copy(self)

    def __copy__(self) -> Batches:
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    @property
    def moves(self) -> bool:
        """Whether what is kept lies in another place than the model."""
        return self.keep == "host" and self._device.type != "cpu"

    @property
    def written(self) -> bool:
        """Whether somebody writes into what is handed out, as far as is known by now."""
        return self._told or self._careful

    def examples(self, model: nn.Module) -> Examples:
        """Return all examples, to be handed out on the device of `model`."""
        device = model_device(model)
        if self._kept is None:
            self._device = device
            with Undoing():  # of random streams, whoever asks
                self._kept = self._read_all(model)
        if device != self._device:  # the model has moved since
            if self.keep == "device":
                self._kept = move(self._kept, device)
            self._device = device
        found = Examples((), 0, self).with_batches(self._kept)
        return replace(found, numbers=tuple(range(len(self._kept))))

    def hand_out(self, examples: Examples) -> Iterator[Batch]:
        """Hand out batches, one after the other; put back what was written into them."""
        if examples.streamed:
            yield from self._stream(examples.numbers)
            return
        for batch in examples.batches:
            if self.moves:
                yield move(batch, self._device)
                continue
            backup = [t.clone() for t in tensors_of(batch)] if self._careful else None
            before = versions(batch)
            try:
                yield fresh(batch)
            finally:
                written = versions(batch) != before
                if not (written or backup is None or self._told or self._forward is None):
                    written = self._changed(batch, backup)
                if written or self._told:  # who writes past the counters once, does so again
                    self._put_back(batch, backup)
        self._careful = self._told or self._forward is None

    def _changed(self, batch: Batch, backup: list[Tensor]) -> bool:
        """Return whether values changed that no counter tells of; waits for the device."""
        changed = [not _same(*pair) for pair in zip(tensors_of(batch), backup, strict=True)]
        if any(changed[: len(list(tensors_of(batch[0])))]):  # a metric does not see inputs
            self._writer = self._forward
        return any(changed)

    @torch.no_grad()
    def _put_back(self, batch: Batch, backup: list[Tensor] | None) -> None:
        if backup is not None:
            for tensor, value in zip(tensors_of(batch), backup, strict=True):
                tensor.copy_(value)
        elif self._kept is not None:  # nobody had written before: read it all again
            for kept, again in zip(self._kept, self._read(), strict=True):
                for tensor, value in zip(tensors_of(kept), tensors_of(again), strict=True):
                    tensor.copy_(value)
        self._careful = True
        if not self._told:
            self._told = True
            who = self._writer or "the metric"
            warn(
                f"{who} writes into its batch in place: the batch is put back after each scoring, "
                "which takes a copy; let it work on a copy of its own, as by x = x - 0.5"
            )

    def apply(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """Send one batch forward through `model`; return (outputs, targets)."""
        before = versions(inputs)
        own = self.forward is not None
        self._forward = "forward=" if own else f"the forward of {type(model).__name__}"
        try:
            if self.forward is not None:
                return self.forward(model, inputs)
            if type(inputs) is dict:
                outputs = model(**inputs)
            elif type(inputs) is tuple:
                outputs = model(*inputs)
            else:
                outputs = model(inputs)
        finally:
            if versions(inputs) != before:
                self._writer = self._forward
        # Hugging Face models give an object or dictionary with `logits`
        if isinstance(outputs, Mapping) and "logits" in outputs:
            return outputs["logits"], targets
        return getattr(outputs, "logits", outputs), targets

    # Reading.

    def _read_all(self, model: nn.Module) -> list[Batch]:
        """Read for the first time; of a stream, shapes and fingerprints alone are kept."""
        self._signature = Signature.of(model)
        self._prints = []  # an interrupt may have stopped it before
        kept: list[Batch] = []
        count = size = 0
        weighty = False
        endless = self._end is None and not _has_length(self._source)
        for batch in self._read():
            if endless and (count >= MOST_EXAMPLES or size >= MOST_BYTES):
                self._end = len(kept)
                self._tell_the_limit(count, size)
                break
            count += batch_size(*batch)
            size += sum(tensor.nbytes for tensor in tensors_of(batch))
            if not kept and self.keep != "stream":
                self._tell_if_large(size)
            if not weighty:
                weights = weights_of(batch[1])
                weighty = weights is None or bool(weights.any())
            if self.keep == "stream":
                self._prints.append(_fingerprint(batch))
                batch = map_tensors(batch, lambda tensor: torch.empty_like(tensor, device="meta"))
            kept.append(batch)
        if not kept:
            raise ValueError("batches is empty: a fitness needs at least one batch")
        if not weighty:
            raise InputError(
                "the weights of all examples are 0, so that nothing is scored: pass weights of "
                "which some are above 0, or leave them out"
            )
        return kept

    def _read(self) -> Iterator[Batch]:
        """Read the source from its start, split, copied, and (unless streamed) where it is kept."""
        collated = isinstance(self._source, DataLoader)
        collated = collated and self._source.collate_fn is default_collate  # type: ignore[attr-defined]
        place = Placing(self._device if self.keep == "device" else torch.device("cpu"), self.moves)
        # a DataLoader draws from the global stream, and so may a transform
        streams = Streams(derive_seed("fitness batches"))
        with streams.current():
            batches = itertools.islice(iter(self._source), self._end)
        while True:
            # not in inference mode: nothing outside of it may use what is made there
            with streams.current(), torch.inference_mode(False), torch.no_grad():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                if self.forward is not None:
                    found = batch, None
                else:
                    batch = map_leaves(tensor_of, batch)
                    found = split_batch(batch, self._signature, collated=collated)
                    if self._metric is not None:
                        found = found[0], as_numbers(found[1], self._metric)
                found = map_leaves(place, found)
            yield found

    def _stream(self, numbers: tuple[int, ...]) -> Iterator[Batch]:
        """Read again, and hand out the batches of these numbers."""
        wanted = set(numbers)
        for i, batch in enumerate(self._read()):
            if not wanted:
                return
            if i >= len(self._prints) or _fingerprint(batch) != self._prints[i]:
                raise InputError(
                    f"batch {i} differs from what was read first: it is {_fingerprint(batch)}, and "
                    f"was {self._prints[i] if i < len(self._prints) else 'not there'}; "
                    "keep='stream' needs the same batches each time: pass keep='host'"
                )
            if i in wanted:
                wanted.remove(i)
                yield move(batch, self._device)
        if wanted:
            raise InputError(
                f"batches ended after {i + 1} of {len(self._prints)} that were read first: "
                "keep='stream' needs the same batches each time: pass keep='host'"
            )

    def _tell_the_limit(self, count: int, size: int) -> None:
        warn(
            f"batches has no length, and no end within {count:,} examples ({size / 2**20:,.0f} "
            f"MiB): the first {self._end} batches are used; say how many with max_batches="
        )

    def _tell_if_large(self, first: int) -> None:
        """Warn where the batches, as large as the first one, will not fit."""
        if not _has_length(self._source):
            return
        count = len(self._source)  # type: ignore[arg-type]
        count = count if self._most is None else min(count, self._most)
        device = self._device if self.keep == "device" else torch.device("cpu")
        room = capacity(device)
        if room is not None and first * count > room // 2:
            other = "'host' or keep='stream'" if self.keep == "device" else "'stream'"
            warn(
                f"{count:,} batches of {first / 2**20:,.1f} MiB are to be kept, more than half of "
                f"the memory of {device} ({room / 2**30:,.0f} GiB): pass keep={other}"
            )


def _same(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same values, NaN being its own equal."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return True
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(((tensor == other) | (tensor.isnan() & other.isnan())).all())
    return torch.equal(tensor, other)


def _taken(source: Iterator[Any], most: int) -> list[Any]:
    """Read so many batches of an iterator, as copies: it may reuse its memory."""
    with Undoing(), Streams(derive_seed("fitness batches")).current():
        return [copy.deepcopy(batch) for batch in itertools.islice(source, most)]


def _fingerprint(batch: Batch) -> str:
    """Return shapes, types, and the first and last number of each tensor of a batch, as a text."""
    found: list[str] = []
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.numel() and leaf.layout is torch.strided:
            ends = [leaf.reshape(-1)[i].item() for i in (0, -1)]
            found.append(f"{str(leaf.dtype).removeprefix('torch.')}{tuple(leaf.shape)}{ends}")
        elif isinstance(leaf, ATOMS):
            found.append(repr(leaf)[:40])
        else:
            found.append(type(leaf).__name__)
    return " ".join(found)


def _has_length(source: Any) -> bool:
    try:
        len(source)
    except TypeError:  # a DataLoader has a method, whether its dataset has a length or not
        return False
    return True


def _refuse_unrepeatable(batches: Any) -> None:
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches is a {type(batches).__name__}, which can be read only once: pass a list or a "
            "DataLoader, or how many to read and keep with max_batches= (not with keep='stream')"
        )
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    if isinstance(batches, Sized) and not isinstance(batches, DataLoader) and not len(batches):
        raise ValueError("batches is empty: a fitness needs at least one batch")
    if isinstance(batches, DataLoader) and _shuffles(batches):
        raise ValueError(
            "batches is a DataLoader that shuffles, so that members and a resumed run would see "
            "other examples: pass shuffle=False"
        )


def _shuffles(loader: DataLoader[Any]) -> bool:
    samplers = (loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    return any(
        isinstance(sampler, _RANDOM_SAMPLERS)
        or (isinstance(sampler, DistributedSampler) and sampler.shuffle)
        for sampler in samplers
    )
