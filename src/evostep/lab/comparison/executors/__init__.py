"""Executors: where the runs of a comparison are done. One executor, one file."""

from __future__ import annotations

from evostep.lab.comparison.executors.base import Execution, Executor
from evostep.lab.comparison.executors.local import run_local
from evostep.lab.comparison.executors.ray import check_ray, run_ray

EXECUTORS = {"local": Executor(run_local), "ray": Executor(run_ray, check_ray)}

__all__ = ["EXECUTORS", "Execution"]
