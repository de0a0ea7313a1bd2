"""A saved decision applied to a file of scores."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

from evostep.errors import InputError
from evostep.lab.polish.files import read_columns
from evostep.lab.polish.scores import score_columns
from evostep.lab.storage import write_bytes
from evostep.polishing.serving import load_decision


def decide_file(decision: Path, scores: Path, out: Path) -> dict[str, Any]:
    """Decide each row of a file, and write what was decided.

    Args:
        decision: a ``decision.json``.
        scores: CSV, parquet or npz with a column ``score_<class>`` for each class of the decision,
            in any order where it has names, else in its own.
        out: a CSV file: the columns that are no scores, and ``decided``, the name of the class (its
            number, where the decision has no names; of several labels those that hold, by spaces).

    Returns:
        ``n`` rows, and how many are ``decided`` for each class.

    Raises:
        InputError: what cannot be read, or does not fit the decision.
    """
    decide = load_decision(decision)
    columns = read_columns(scores)
    wanted = decide.classes[1:] if decide.kind == "binary" else decide.classes
    names, values = score_columns(scores, columns, wanted, len(decide.bias))
    if out.suffix.lower() != ".csv":
        raise InputError(f"--out {out} is no CSV file: write a name that ends in .csv")
    found: list[Any] = decide.names(values) if decide.classes else decide(values).tolist()
    texts = [" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in found]
    kept = [name for name in columns if name not in names]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*kept, "decided"])
    table.writerows(zip(*(columns[name].tolist() for name in kept), texts, strict=True))
    write_bytes(out, text.getvalue().encode())
    return {"n": len(texts), "decided": dict(Counter(texts).most_common())}
