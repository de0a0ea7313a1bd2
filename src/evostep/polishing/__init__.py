"""Polishing: from a trained network to a better metric, confirmed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evostep.polishing.evaluation import evaluate as evaluate

_PUBLIC = {"evaluate": "evaluation"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: `evostep.load_decision` needs NumPy alone."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
