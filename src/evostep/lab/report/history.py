"""The history of a comparison, read line by line: figures need no million of them.

A run of up to some thousand generations is read as it is. Of longer ones every second, fourth, ...
record of a kind is kept, so that memory does not grow with the file; what the others spent and
accepted is handed to the next one that is kept, so that sums stay exact.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from evostep.errors import InputError, reason
from evostep.lab.storage import mismatch

MOST = 20_000  # records that are kept
LEAST = 64  # of a kind in a run, whatever there is of others
SPENT = ("sample_forwards", "seconds")

MEASURES = ({str: (float, None)}, None)
_LINE = {
    "arm": str,
    "kind": str,
    "seed": int,
    "epoch": float,
    "train?": MEASURES,
    "fitness?": MEASURES,
    "arms?": ([str], None),
    "generation?": (int, None),
    "scores?": ([(float, None)], None),
    **dict.fromkeys(("parent?", "candidate?", "sample_forwards?", "seconds?"), (float, None)),
    "phase?": ({str: (float, bool, None)}, None),
}
_FLOATS = {float, type(None)}
Record = dict[str, Any]


def read_history(path: Path) -> tuple[list[Record], int]:
    """Read ``history.jsonl``, or what stands for it.

    Returns:
        The records, run by run. Those of a run that was thinned have ``"evolved"``, what
        generations took since the record before, and ``"stands_for"``, how many generations these
        were and how many of them were accepted. And the number of lines that could not be read (a
        run that was killed leaves half a line).

    Raises:
        InputError: the file cannot be read.
    """
    runs: dict[tuple[str, int], _Run] = {}
    skipped, kept, limit = 0, 0, MOST
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.strip():
                    continue
                if (record := _parse(line)) is None:
                    skipped += 1
                    continue
                kept += runs.setdefault((record["arm"], record["seed"]), _Run()).add(record)
                if kept > limit:
                    for run in runs.values():
                        run.thin()
                    kept = sum(len(run.records) for run in runs.values())
                    limit = max(MOST, 2 * kept)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({reason(error)}): remove it, and the curves are left out"
        ) from error
    return [record for run in runs.values() for record in run.all_records()], skipped


def generations_of(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many generations a record stands for, and how many of them were accepted.

    Example:
        >>> generations_of({"kind": "generation", "accepted": True})
        (1, 1)
    """
    if "stands_for" in record:
        return record["stands_for"]["generations"], record["stands_for"]["accepted"]
    one = record["kind"] == "generation"
    return int(one), int(one and bool(record.get("accepted")))


class _Run:
    """The records of one run, thinned where there are too many."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._every: Counter[str] = Counter()  # kind -> one of how many is kept; 0: all
        self._seen: Counter[str] = Counter()
        self._last: Record | None = None  # the newest, kept or not
        self._dropped: Record | None = None  # with what those before it took

    def add(self, record: Record) -> bool:
        """Take a record; return whether it is kept."""
        if self._every:
            _annotate(record, self._last)
        kind, self._last = record["kind"], record
        number = self._seen[kind]
        self._seen[kind] += 1
        keep = number % (self._every[kind] or 1) == 0
        self._place(record, keep, self.records)
        return keep

    def thin(self) -> None:
        """Keep one of two of each kind of which there are many."""
        counts = Counter(record["kind"] for record in self.records)
        many = {kind for kind, count in counts.items() if count > LEAST}
        if not many:
            return
        if not self._every:
            for before, record in pairwise([None, *self.records]):
                _annotate(record or {}, before)
        for kind in counts:
            self._every[kind] = (self._every[kind] or 1) * (2 if kind in many else 1)
        records, tail = self.records, self._dropped
        self.records, self._dropped = [], None
        places: Counter[str] = Counter()
        for record in records:
            kind = record["kind"]
            self._place(record, kind not in many or places[kind] % 2 == 0, self.records)
            places[kind] += 1
        if tail is not None:
            self._place(tail, False, self.records)

    def all_records(self) -> list[Record]:
        """Return what is kept, and the newest one in any case: it tells what all of it took."""
        return [*self.records, *([] if self._dropped is None else [self._dropped])]

    def _place(self, record: Record, keep: bool, kept: list[Record]) -> None:
        if (dropped := self._dropped) is not None:
            for key in ("evolved", "stands_for"):
                for name, value in dropped[key].items():
                    record[key][name] += value
        self._dropped = None if keep else record
        if keep:
            kept.append(record)


def _annotate(record: Record, before: Record | None) -> None:
    """Note in a record what its generation took, and what it stands for."""
    generation = record["kind"] == "generation"
    record["stands_for"] = dict(
        zip(("generations", "accepted"), generations_of(record), strict=True)
    )
    if before is None:  # a trunk may lie before it
        return
    record["evolved"] = {
        key: (record.get(key) or 0) - (before.get(key) or 0) if generation else 0 for key in SPENT
    }


def _parse(line: bytes) -> Record | None:
    """Return a line as a record; None where it is none."""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if _is_plain(record) or not mismatch(record, _LINE) else None


def _is_plain(record: Any) -> bool:
    """Return whether a record is of a generation as evostep writes it: faster than `mismatch`."""
    try:
        return (
            record["kind"] == "generation"
            and type(record["arm"]) is str
            and type(record["seed"]) is int
            and type(record["epoch"]) is int
            and type(record["generation"]) is int
            and type(record["scores"]) is list
            and _FLOATS.issuperset(map(type, record["scores"]))
            and all(type(record[name]) in _FLOATS for name in ("parent", "candidate"))
            and all(0 <= record[name] < 1e300 for name in SPENT)
            and not {"train", "fitness", "arms", "phase", "stands_for", "evolved"} & record.keys()
        )
    except (KeyError, TypeError, AttributeError):
        return False
