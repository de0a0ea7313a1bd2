"""The runs as a spreadsheet: one line a run, one column a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PARTS = ("test", "train", "fitness", "accept")
_FORMULAS = "=+-@\uff1d\uff0b\uff0d\uff20"  # begin one, the wide ones where people write so
_COUNTS = ("sample_forwards", "seconds", "epochs", "generations", "accepted", "failed", "diverged")


def runs_csv(results: Mapping[str, Any]) -> str:
    """Return the runs as CSV: arm, seed, each metric on each part, what it spent and did.

    Args:
        results: with "runs", as in `results.json`.

    Returns:
        Lines that end with a line feed; a number that a run lacks is an empty field. A text that a
        spreadsheet would run as a formula has an apostrophe before it.

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
    columns = [*(list(found) or ["arm", "seed"]), *counts]
    lines: list[list[Any]] = [columns, *([row.get(name) for name in columns] for row in rows)]
    return "".join(",".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value: Any) -> str:
    """Return a field of CSV: a number as it is, a text that is read as nothing else.

    Example:
        >>> [_cell(value) for value in (-1.5, None, "sgd", "-1", "a,b")]
        ['-1.5', '', 'sgd', "'-1", '"a,b"']
    """
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = str(value)
    if text.lstrip()[:1] in tuple(_FORMULAS) or text[:1] in ("\t", "\r", "\n"):
        text = f"'{text}"
    if any(sign in text for sign in ',;"\t\r\n'):  # where numbers have a comma, ; parts fields
        text = '"' + text.replace('"', '""') + '"'
    return text
