"""Decisions where there is no torch: NumPy alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.errors import InputError, reason

if TYPE_CHECKING:
    import numpy as np

_KINDS = ("classes", "binary", "labels")
_SMALLEST = 1e-12  # of a probability: zero has no logarithm


@dataclass(frozen=True)
class Served:
    """A saved decision: a function of scores, see `load_decision`.

    Attributes:
        kind: ``"classes"``, ``"binary"`` or ``"labels"``.
        bias: (C,) what is added to each output.
        scale: what outputs are multiplied by before.
        scores: what it is given: ``"logits"`` or ``"probabilities"``.
        classes: their names, in the order of the outputs; empty where the file has none.
    """

    kind: str
    bias: np.ndarray
    scale: float
    scores: str
    classes: tuple[str, ...]

    def __call__(self, scores: Any) -> np.ndarray:
        """Return numbers of classes (n,), or zeros and ones (n, L) for several labels.

        Raises:
            InputError: scores of another shape, of another kind, or NaN.
        """
        import numpy as np

        values = np.asarray(scores, dtype=np.float64)
        if self.kind == "binary" and values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != len(self.bias):
            raise InputError(
                f"scores of shape {values.shape} do not fit a decision of {len(self.bias)} outputs"
            )
        missing = np.flatnonzero(np.isnan(values).any(1))
        if len(missing):
            raise InputError(
                f"scores are NaN in {len(missing)} rows, the first is row {missing[0]} (from 0): "
                "leave these out"
            )
        adjusted = self._logits(values) * self.scale + self.bias
        if self.kind == "classes":
            best: np.ndarray = adjusted.argmax(1)
            return best
        above = (adjusted > 0).astype(np.int64)
        found: np.ndarray = above[:, 0] if self.kind == "binary" else above
        return found

    def names(self, scores: Any) -> list[Any]:
        """Return the names of the classes: one an example; of several labels a list of each.

        Raises:
            InputError: the file has no names; what a call raises.
        """
        if not self.classes:
            raise InputError("the decision has no names of classes: call it for their numbers")
        found = self(scores)
        if self.kind == "labels":
            return [[self.classes[i] for i in row.nonzero()[0]] for row in found]
        return [self.classes[i] for i in found]

    def _logits(self, values: np.ndarray) -> np.ndarray:
        import numpy as np

        one_of_many = self.kind == "classes"
        within = bool(((values >= -1e-6) & (values <= 1 + 1e-6)).all())
        to_one = np.abs(values.sum(1) - 1) < 1e-2
        if self.scores == "logits":
            # a label's logit may well lie in [0, 1]
            if one_of_many and within and len(values) and bool(to_one.all()):
                raise InputError(
                    "scores lie in [0, 1] and rows sum to 1: these are probabilities, and the "
                    "decision is about logits: give numpy.log(probabilities)"
                )
            return values
        if not within:
            raise InputError(
                f"scores go from {values.min():.3g} to {values.max():.3g}, and the decision is "
                "about probabilities: give them as they are, not their logarithms"
            )
        if one_of_many and not to_one.all():
            row = int(np.argmin(to_one))
            raise InputError(
                f"probabilities of row {row} (from 0) sum to {values[row].sum():.3g}, not to 1: "
                "give those of all classes"
            )
        likely = values.clip(_SMALLEST, 1 if one_of_many else 1 - _SMALLEST)
        found: np.ndarray = np.log(likely) if one_of_many else np.log(likely) - np.log1p(-likely)
        return found


def load_decision(path: str | Path) -> Served:
    """Return a saved decision as a function of scores, for serving: it needs NumPy alone.

    Args:
        path: a ``decision.json``.

    Returns:
        A function of what was polished, logits or probabilities: (n, C), or (n,) of one binary
        label -> (n,) numbers of classes, or (n, L) of zeros and ones for several labels. Columns
        are in the order of its `classes`; its `names` returns classes by name.

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
        if not isinstance(saved, dict) or saved.get("format") not in (1, 2, 3):
            raise ValueError("its format is not 1, 2 or 3")
        kind = saved["kind"]
        bias = np.asarray(saved["bias"], dtype=np.float64)
        scale = float(saved.get("scale", 1.0))
        scores, classes = saved.get("scores", "logits"), list(map(str, saved.get("classes", ())))
        finite = bool(np.isfinite(bias).all()) and 0 < scale < np.inf
        if kind not in _KINDS or bias.ndim != 1 or not finite:
            raise ValueError("its kind, bias or scale is not one of a decision")
        if scores not in ("logits", "probabilities"):
            raise ValueError(f"its scores are {scores!r}, neither logits nor probabilities")
        if classes and len(classes) != (2 if kind == "binary" else len(bias)):
            raise ValueError(f"it has {len(classes)} names for {len(bias)} outputs")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is no decision ({reason(error)}): give a decision.json"
        ) from error

    return Served(kind, bias, scale, str(scores), tuple(classes))
