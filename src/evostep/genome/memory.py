"""Which tensors lie on one memory: views that are moved once, and overlaps that cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sharing:
    """Tensors on one memory.

    Attributes:
        group: name -> the first name on the very same entries, in whatever order they are.
        overlaps: pairs that share some entries, and not all.
        folded: names of tensors several entries of which lie on one memory.
    """

    group: Mapping[str, str] = field(default_factory=dict)
    overlaps: tuple[tuple[str, str], ...] = ()
    folded: frozenset[str] = frozenset()

    def once(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names without those on the memory of one before them.

        Example:
            >>> Sharing({"a": "a", "b": "a"}).once(["a", "b", "c"])
            ('a', 'c')
        """
        firsts: dict[str, str] = {}
        for name in names:
            firsts.setdefault(self.group.get(name, name), name)
        return tuple(firsts.values())

    def alike(self, name: str) -> set[str]:
        """Return the names on the very entries of `name`, its own included."""
        first = self.group.get(name)
        same = {other for other, group in self.group.items() if group == first}
        return same if first is not None else {name}

    def meets(self, name: str) -> set[str]:
        """Return the other names on the memory of `name`, or on a part of it."""
        partly = {other for pair in self.overlaps if name in pair for other in pair}
        return (self.alike(name) | partly) - {name}


def sharing_of(tensors: Mapping[str, Tensor]) -> Sharing:
    """Find the tensors that lie on one memory.

    Example:
        >>> w = torch.zeros(4, 3)
        >>> found = sharing_of({"a": w, "b": w.T, "c": w[:2], "d": torch.zeros(1).expand(5)})
        >>> dict(found.group), found.overlaps, sorted(found.folded)
        ({'a': 'a', 'b': 'a'}, (('a', 'c'), ('b', 'c')), ['d'])
    """
    storages: dict[tuple[object, int], list[str]] = {}
    for name, tensor in tensors.items():
        key = _place(tensor)
        if key is not None:
            storages.setdefault(key, []).append(name)
    folded = {name for names in storages.values() for name in names if is_folded(tensors[name])}
    group: dict[str, str] = {}
    overlaps: list[tuple[str, str]] = []
    for names in storages.values():
        for one, other in _meeting({name: tensors[name] for name in names}):
            if _same_entries(tensors[one], tensors[other]):
                first = group.setdefault(one, one)
                group[other] = first
            elif _common_entries(tensors[one], tensors[other]):
                overlaps.append((one, other))
    return Sharing(group, tuple(overlaps), frozenset(folded))


def distinct(tensor: Tensor) -> Tensor:
    """Return a view without the repetitions of an expanded tensor, which can be written to.

    Example:
        >>> distinct(torch.zeros(2, 1).expand(2, 5)).shape
        torch.Size([2, 1])
    """
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def is_folded(tensor: Tensor) -> bool:
    """Return whether several entries of a tensor lie on one memory."""
    reach = 1
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted(pair for pair in pairs if pair[1] > 1):
        if stride < reach:
            places = _entries(tensor)
            return len(places.unique()) < len(places)
        reach += stride * (size - 1)
    return False


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the memory of a tensor; None where there is none as such (a sparse one)."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # as of members under vmap
        return None


def key_of(tensor: Tensor) -> int | None:
    """Return a number that tensors on the same memory share; None where there is none as such."""
    storage = storage_of(tensor)
    return None if storage is None else storage._cdata


def address_of(tensor: Tensor) -> int:
    """Return where a tensor's memory begins; 0 where there is none as such."""
    storage = storage_of(tensor)
    try:
        return 0 if storage is None else storage.data_ptr()
    except RuntimeError:  # as of a DTensor, whose memory is its local part's
        return 0


def _place(tensor: Tensor) -> tuple[object, int] | None:
    """Return what tensors on one memory share, whoever allocated it; None where there is none."""
    pointer = address_of(tensor)
    return (tensor.device, pointer) if pointer and tensor.numel() else None


def byte_range(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its memory, and the one after the last."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    reach = 1 + sum(int(stride) * (int(size) - 1) for stride, size in pairs)
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return begin, begin + reach * tensor.element_size()


def _meeting(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return the pairs whose ranges of memory meet, in the order of the names.

    Weights of a recurrent layer, or of a sharded model, lie side by side on one memory: they do
    not, and there are many, so neighbours alone are compared.
    """
    if len(tensors) < 2:
        return []
    order = {name: i for i, name in enumerate(tensors)}
    ranges = {name: byte_range(tensor) for name, tensor in tensors.items()}
    pairs: list[tuple[str, str]] = []
    reaching: list[str] = []
    for name in sorted(tensors, key=lambda n: ranges[n]):
        reaching = [other for other in reaching if ranges[other][1] > ranges[name][0]]
        pairs += [(other, name) for other in reaching]
        reaching.append(name)
    in_order = [(a, b) if order[a] < order[b] else (b, a) for a, b in pairs]
    return sorted(in_order, key=lambda pair: (order[pair[0]], order[pair[1]]))


def _entries(tensor: Tensor) -> Tensor:
    """Return the position of each entry in memory, in units of the entries."""
    places = torch.tensor([tensor.storage_offset()])
    for stride, size in zip(tensor.stride(), tensor.shape, strict=True):
        places = (places[:, None] + torch.arange(size) * stride).flatten()
    return places


def _is_dense(tensor: Tensor) -> bool:
    begin, end = byte_range(tensor)
    return end - begin == tensor.numel() * tensor.element_size() and not is_folded(tensor)


def _same_entries(one: Tensor, other: Tensor) -> bool:
    if (
        one.dtype != other.dtype
        or byte_range(one) != byte_range(other)
        or one.numel() != other.numel()
    ):
        return False
    if one.shape == other.shape and one.stride() == other.stride():
        return True
    if _is_dense(one) and _is_dense(other):
        return True
    return torch.equal(_entries(one).sort().values, _entries(other).sort().values)


def _common_entries(one: Tensor, other: Tensor) -> bool:
    if one.element_size() != other.element_size() or (_is_dense(one) and _is_dense(other)):
        return True
    return bool(torch.isin(_entries(one), _entries(other)).any())
