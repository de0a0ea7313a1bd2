"""evostep with noise of rank 1, to compare with implementations of EGGROLL."""

from __future__ import annotations

from collections.abc import Callable

import evostep
from peer_adapters import evostep_dense
from peer_adapters.task import Task

PACKAGES = evostep_dense.PACKAGES
CALLED = "as evostep, with OpenAIES(..., noise=LowRank(1))"
NOTES = evostep_dense.NOTES
SCORES_PARENT = True


def prepare(task: Task) -> Callable[[], None]:
    return evostep_dense.prepare(task, evostep.LowRank(1))
