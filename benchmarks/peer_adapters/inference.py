"""Plain inference: what scoring networks costs at least, unless by a trick."""

from __future__ import annotations

from collections.abc import Callable

import torch

from peer_adapters.task import Task, infer

PACKAGES = ("torch",)
CALLED = "model(inputs) under no_grad, one network after the other"
NOTES = ""
SCORES_PARENT = False


def prepare(task: Task) -> Callable[[], None]:
    torch.set_num_threads(task.threads_each)
    return lambda: infer(task, task.population)
