"""The runs as a spreadsheet: one line a run, one column a number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

_PARTS = ("test", "train", "fitness", "accept")
_COUNTS = ("sample_forwards", "seconds", "epochs", "generations", "accepted", "failed", "diverged")


def runs_csv(results: Mapping[str, Any]) -> str:
    """Return the runs as CSV: arm, seed, each metric on each part, what it spent and did.

    Args:
        results: with "runs", as in `results.json`.

    Returns:
        Lines that end with a line feed; a number that a run lacks is an empty field.

    Example:
        >>> run = {"arm": "sgd", "seed": 0, "test": {"accuracy": 0.5}, "seconds": 9.5}
        >>> print(runs_csv({"runs": [run]}), end="")
        arm,seed,test accuracy,seconds
        sgd,0,0.5,9.5
    """
    rows: list[dict[str, Any]] = []
    for run in results["runs"]:
        row = {"arm": run["arm"], "seed": run["seed"]}
        for part in _PARTS:
            row |= {f"{part} {name}": x for name, x in (run.get(part) or {}).items()}
        rows.append(row | {name: run[name] for name in _COUNTS if run.get(name) is not None})
    found = dict.fromkeys(name for row in rows for name in row if name not in _COUNTS)
    counts = [name for name in _COUNTS if any(name in row for row in rows)]
    text = io.StringIO()
    columns = list(found) or ["arm", "seed"]
    table = csv.DictWriter(text, [*columns, *counts], restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
