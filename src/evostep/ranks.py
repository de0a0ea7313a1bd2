"""Ranks: the processes that work on one evolution, and what they tell each other.

Messages are a few bytes in host memory. They go through a gloo group of their own, beside the
user's group and whatever that one's backend is: so the timeout is ours, and nothing gets in the way
of what the user's group does. One message is one collective (`Ranks.gather`), unless it is longer
than a frame; so who is interrupted has either taken part or not, and can still say that it leaves.
Each rank marks in the group's store how far it has come: that tells who is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from evostep.errors import InputError, reason, warn

TIMEOUT = 1800.0  # seconds, as torch's own for gloo
TIMEOUT_VARIABLE = "EVOSTEP_TIMEOUT"
_SLOW = 30.0  # seconds after which one is told for whom it waits
_HEAD = 5  # bytes of a frame before its content
_LEFT, _SHARING = 0, 255  # kinds of messages: of who goes away, of a length
_TOLD = 1000  # bytes of why somebody goes away


class LostRank(InputError):  # noqa: N818 - what has happened
    """Another rank has not come, has gone, or has left with an error: nothing is wrong here."""

    exit_code: ClassVar[int] = 1


def default_timeout() -> float:
    """Return for how many seconds ranks wait for each other where nobody says.

    Raises:
        ValueError: the environment says something that is no number above 0.
    """
    given = os.environ.get(TIMEOUT_VARIABLE)
    try:
        seconds = TIMEOUT if given is None else float(given)
        timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"{TIMEOUT_VARIABLE} must be seconds above 0, got {given!r}")
    return seconds


def group_size(group: Any = None) -> int:
    """Return how many ranks a process group has, the default one if none is given; 1 without any.

    Example:
        >>> group_size()
        1
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def is_first(group: Any = None) -> bool:
    """Return whether this is the first rank of a process group; alone it is.

    Example:
        >>> is_first()
        True
    """
    return group_size(group) == 1 or dist.get_rank(group) == 0


class Ranks:
    """The ranks of a process group, as evolution sees them.

    Args:
        group: which; None: the default group.
        timeout: seconds for which one waits for the others.

    Attributes:
        rank: of this process, within the group.
        size: how many there are.
        frame: bytes of a message that goes in one piece.
        sent: bytes that this rank has sent so far.

    Raises:
        ValueError: another rank has not come in time; it is named.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.timeout = timeout
        self.frame = 1024
        self.sent = 0
        self.broken = False
        self._global = dist.get_process_group_ranks(group)
        self._count = 0
        of_all = group is None or group is dist.group.WORLD
        number = _met.get(of_all, 0) + 1
        store = dist.distributed_c10d._get_default_store()
        members = "-".join(map(str, self._global)) if not of_all else "all"
        self._store = dist.distributed_c10d.PrefixStore(f"evostep/{members}/{number}", store)
        self._await_all("evolve")
        _met[of_all] = number
        backend = "gloo" if dist.is_gloo_available() else None
        try:
            self._group: Any = dist.new_group(
                None if of_all else self._global,
                timeout=timedelta(seconds=timeout),
                backend=backend,
                use_local_synchronization=not of_all,
            )
        except RuntimeError as error:
            raise LostRank(
                f"the ranks do not reach each other within {timeout:g} s ({_short(error)}): set "
                f"GLOO_SOCKET_IFNAME to their network's card, or raise {TIMEOUT_VARIABLE} (seconds)"
            ) from error

    @classmethod
    def of(cls, group: Any, timeout: float | None) -> Ranks:
        """Return the ranks of a group, made when they first meet."""
        seconds = default_timeout() if timeout is None else timeout
        key = group if group is not None else dist.group.WORLD
        for known in _known:
            if known[0] is key and known[1].timeout == seconds and not known[1].broken:
                return known[1]
        made = cls(group, seconds)
        _known[:] = [(key, made), *((k, r) for k, r in _known if not r.broken)]
        return made

    def name(self, rank: int) -> str:
        """Return what a rank of the group is called in errors: by its number among all."""
        return f"rank {self._global[rank]}"

    def gather(self, kind: int, content: bytes, what: str) -> list[bytes]:
        """Exchange a message with all ranks; return theirs, in order.

        Args:
            kind: of message, 1 to 254: all ranks have to send the same.
            content: what this rank says.
            what: all are doing, in words for errors.

        Raises:
            ValueError: a rank does not come in time, has gone, leaves, or does something else.
        """
        parts = self._exchange(kind, content, what)
        left = [(r, text) for r, (other, text) in enumerate(parts) if other == _LEFT]
        if left:
            who, text = left[0]
            why = text.decode("utf-8", "replace")
            raise LostRank(f"{self.name(who)} has left {what} ({why}), so all others do")
        others = [r for r, (other, _) in enumerate(parts) if other != parts[0][0]]
        if others:
            raise InputError(
                f"ranks {self._global[0]} and {self._global[others[0]]} do not do the same in "
                f"{what}: every rank has to call it with the same arguments"
            )
        return [text for _, text in parts]

    def leave(self, why: str, what: str) -> None:
        """Tell the others, who may wait for a message, that this rank goes away."""
        if not self.broken:
            try:
                self._exchange(_LEFT, why.encode()[:_TOLD], what)
            except LostRank:
                return  # they have gone, too

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors those of the first rank."""
        with torch.no_grad():
            for tensor in tensors:
                dense = tensor.detach().cpu().contiguous()
                bits = dense.reshape(-1).view(torch.uint8)
                self._collect(partial(self._send_from_first, bits), "the start of a phase")
                tensor.copy_(bits.view(dense.dtype).reshape(dense.shape))

    def share(self, content: bytes) -> bytes:
        """Return what the first rank gives, as large as it may be."""
        lengths = self.gather(_SHARING, str(len(content)).encode(), "start")
        bits = torch.zeros(int(lengths[0]), dtype=torch.uint8)
        if self.rank == 0 and content:
            bits = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self.broadcast([bits])
        return bits.numpy().tobytes()

    def _send_from_first(self, bits: Tensor) -> None:
        dist.broadcast(bits, src=self._global[0], group=self._group)

    def _exchange(self, kind: int, content: bytes, what: str) -> list[tuple[int, bytes]]:
        """Send a kind and a content, in as many frames as it takes; return those of all ranks."""
        size = self.frame
        head = bytes([kind]) + len(content).to_bytes(_HEAD - 1, "little")
        whole = head + content
        sent = 0
        received = [b""] * self.size
        longest = size
        while sent < longest:
            piece = bytearray(whole[sent : sent + size].ljust(size, b"\0"))
            frame = torch.frombuffer(piece, dtype=torch.uint8)
            found = [torch.empty_like(frame) for _ in range(self.size)]
            self._collect(partial(dist.all_gather, found, frame, group=self._group), what)
            received = [a + b.numpy().tobytes() for a, b in zip(received, found, strict=True)]
            if sent == 0:
                longest = max(_HEAD + _length(one) for one in received)
            sent += size
            self.sent += size
        return [(one[0], one[_HEAD : _HEAD + _length(one)]) for one in received]

    def _collect(self, collective: Callable[[], Any], what: str) -> None:
        """Take part in a collective.

        Raises:
            LostRank: somebody else does not, in time.
        """
        self._count += 1
        began = time.monotonic()
        try:
            self._store.set(str(self.rank), str(self._count))
            collective()
        except RuntimeError as error:
            self.broken = True
            raise self._lost(what, time.monotonic() - began, error) from error

    def _lost(self, what: str, waited: float, error: RuntimeError) -> LostRank:
        """Return the error that names who is missing."""
        try:
            missing = [r for r in range(self.size) if self._reached(r) < self._count]
        except RuntimeError:
            missing = []
        if missing and waited >= 0.9 * self.timeout:
            return self._not_come(missing, what)
        why = _short(error)
        if missing:
            return LostRank(f"{self._named(missing)} gone in {what} ({why})")
        return LostRank(f"a rank has gone, or has waited in vain for this one, in {what} ({why})")

    def _not_come(self, missing: list[int], what: str) -> LostRank:
        return LostRank(
            f"{self._named(missing)} not come within {self.timeout:g} s in {what}: every rank has "
            f"to call it; where one takes longer, raise {TIMEOUT_VARIABLE} (seconds)"
        )

    def _named(self, ranks: list[int]) -> str:
        numbers = ", ".join(str(self._global[r]) for r in ranks)
        return f"rank {numbers} has" if len(ranks) == 1 else f"ranks {numbers} have"

    def _reached(self, rank: int) -> int:
        """Return how many collectives a rank has begun; -1: it has not come at all."""
        key = str(rank)
        return int(self._store.get(key)) if self._store.check([key]) else -1

    def _await_all(self, what: str) -> None:
        """Wait until all ranks have come for the first time.

        Raises:
            LostRank: one has not in time.
        """
        began = time.monotonic()
        told = False
        try:
            self._store.set(str(self.rank), "0")
            while missing := [r for r in range(self.size) if self._reached(r) < 0]:
                waited = time.monotonic() - began
                if waited > self.timeout:
                    self._store.delete_key(str(self.rank))  # who comes later waits in vain, too
                    raise self._not_come(missing, what)
                if waited > _SLOW and not told:
                    told = True
                    warn(f"{self._named(missing)} not come to {what}, which every rank has to call")
                time.sleep(0.005)
        except RuntimeError as error:
            raise LostRank(
                f"the connection to the other ranks is lost ({reason(error)})"
            ) from error


_known: list[tuple[Any, Ranks]] = []  # by their groups
_met: dict[bool, int] = {}  # how often the ranks of all, and of some, have met


def _short(error: RuntimeError) -> str:
    return reason(error).partition(". ")[0][:200]


def _length(message: bytes) -> int:
    return int.from_bytes(message[1:_HEAD], "little")
