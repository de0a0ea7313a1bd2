"""Polishing: from a trained network to a better metric, confirmed."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DecisionClassifier": "evostep.polishing.estimator",  # imports scikit-learn
    "evaluate": "evostep.polishing.evaluation",
    "load_decision": "evostep.polishing.serving",  # imports NumPy alone
}


def __getattr__(name: str) -> Any:
    """Import what needs more, or less, than torch when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
