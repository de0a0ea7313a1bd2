"""The commands, by name: one command, one file."""

from __future__ import annotations

from types import ModuleType

from evostep.cli import (
    compare,
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
    "sigma": sigma,
    "compare": compare,
    "train": train,
    "report": report,
    "methods": methods,
    "list": listing,
    "doctor": doctor,
}
