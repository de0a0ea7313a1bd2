"""Decisions where there is no torch: NumPy alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.errors import InputError, reason

if TYPE_CHECKING:
    import numpy as np


def load_decision(path: str | Path) -> Callable[[Any], np.ndarray]:
    """Return a saved decision as a function of scores, for serving: it needs NumPy alone.

    Args:
        path: a ``decision.json``.

    Returns:
        A function: logits (n, C), or (n,) of one binary label -> (n,) classes, or (n, L) of zeros
        and ones for several labels.

    Raises:
        InputError: a file that is missing, or is no decision.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "decision.json"
        >>> _ = path.write_text('{"format": 1, "kind": "classes", "bias": [0.0, 2.0]}')
        >>> load_decision(path)([[1.0, 0.0], [3.0, 0.0]]).tolist()
        [1, 0]
    """
    import numpy as np

    try:
        saved = json.loads(Path(path).read_text())
        if not isinstance(saved, dict) or saved.get("format") not in (1, 2):
            raise ValueError("its format is not 1 or 2")
        kind = saved["kind"]
        bias = np.asarray(saved["bias"], dtype=np.float64)
        scale = float(saved.get("scale", 1.0))
        finite = bool(np.isfinite(bias).all()) and 0 < scale < np.inf
        if kind not in ("classes", "binary", "labels") or bias.ndim != 1 or not finite:
            raise ValueError("its kind, bias or scale is not one of a decision")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is no decision ({reason(error)}): give a decision.json"
        ) from error

    def decide(scores: Any) -> np.ndarray:
        values = np.asarray(scores, dtype=np.float64)
        if kind == "binary" and values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != len(bias):
            raise InputError(
                f"scores of shape {values.shape} do not fit a decision of {len(bias)} outputs"
            )
        adjusted = values * scale + bias
        if kind == "classes":
            best: np.ndarray = adjusted.argmax(1)
            return best
        above = (adjusted > 0).astype(np.int64)
        found: np.ndarray = above[:, 0] if kind == "binary" else above
        return found

    return decide
