"""Executors: where the runs of a comparison are done. One executor, one file."""

from __future__ import annotations

from evostep.lab.comparison.executors.base import Execution, Executor
from evostep.lab.comparison.executors.local import run_local
from evostep.lab.comparison.executors.ray import run_ray

EXECUTORS: dict[str, Executor] = {"local": run_local, "ray": run_ray}

__all__ = ["EXECUTORS", "Execution"]
