"""evostep with one member at a time on all cores, to compare with several at once."""

from __future__ import annotations

from collections.abc import Callable

from peer_adapters import evostep_dense
from peer_adapters.task import Task

PACKAGES = evostep_dense.PACKAGES
CALLED = 'as evostep, with engine="inplace"'
NOTES = evostep_dense.NOTES
SCORES_PARENT = True


def prepare(task: Task) -> Callable[[], None]:
    return evostep_dense.prepare(task, engine="inplace")
