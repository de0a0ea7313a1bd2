"""The commands, by name: one command, one file."""

from __future__ import annotations

from types import ModuleType

from evostep.cli import (
    compare,
    decide,
    doctor,
    evaluate,
    listing,
    methods,
    polish,
    report,
    sigma,
    train,
)

COMMANDS: dict[str, ModuleType] = {
    "polish": polish,
    "evaluate": evaluate,
    "decide": decide,
    "sigma": sigma,
    "compare": compare,
    "train": train,
    "report": report,
    "methods": methods,
    "list": listing,
    "doctor": doctor,
}
