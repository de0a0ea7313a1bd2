"""evostep: gradient steps and evolution steps on the metric that you report.

Wrap an optimizer in `Evolved`, score with a `Fitness`, and call `optimizer.evolve` between epochs;
or evolve a checkpoint without any optimizer by `Evolution`.
"""

# ruff: noqa: F403, F405  # the names are those of __all__, and a test imports each
from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from evostep._version import __version__

if TYPE_CHECKING:
    from evostep._public import *

__all__ = [
    "CMAES",
    "ESGD",
    "SNES",
    "SPSA",
    "AllWeights",
    "Alternate",
    "Always",
    "Evolution",
    "Evolved",
    "Fitness",
    "GradientNoise",
    "GuidedES",
    "Improves",
    "Ladder",
    "LowRank",
    "Only",
    "OpenAIES",
    "PairedTest",
    "Polished",
    "RandomMutation",
    "RandomSearch",
    "Record",
    "Safe",
    "Scores",
    "Span",
    "Species",
    "Verdict",
    "__version__",
    "load_decision",
    "out_of_fold",
    "polish",
    "suggest_sigma",
]

# What serves a decision runs where there is no torch.
_WITHOUT_TORCH = {"load_decision": "evostep.polishing.serving"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: the command line helps without torch."""
    if name in __all__:
        home = _WITHOUT_TORCH.get(name, "evostep._public")
        found = getattr(importlib.import_module(home), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"evostep.{name}") is not None:
        found = importlib.import_module(f"evostep.{name}")
    else:
        raise AttributeError(f"module 'evostep' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
