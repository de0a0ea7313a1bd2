"""What a comparison left behind, read and checked: results.json and history.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evostep.errors import InputError
from evostep.lab.report import contrasts

_REPAIR = "restore the file, or run `evostep compare --out` into a new directory"


def read_records(
    directory: Path,
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Read the records of a comparison.

    Returns:
        The results with "arms" and "contrasts" computed; the records of the history; and the number
        of history lines that could not be read (a run that was killed leaves half a line).

    Raises:
        InputError: `results.json` is missing, malformed or of another format.
    """
    path = directory / "results.json"
    try:
        results = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"no results.json in {str(directory)!r}: "
            "give the directory that `evostep compare --out` wrote"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {str(path)!r} ({reason}): {_REPAIR}") from None
    _check_results(results, path)
    try:
        results = contrasts.with_statistics(results)
    except ValueError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    return results, *_read_history(directory / "history.jsonl")


def _check_results(results: object, path: Path) -> None:
    def refuse(what: str) -> InputError:
        return InputError(f"{str(path)!r} {what}: {_REPAIR}")

    if not isinstance(results, dict) or not isinstance(results.get("runs"), list):
        raise refuse('has no list of "runs"')
    for key in ("config", "environment", "data", "splits"):
        if not isinstance(results.setdefault(key, {}), dict):
            raise refuse(f'holds {results[key]!r:.40} for "{key}", not an object')
    for arm in results["config"].get("arms") or []:
        if not isinstance(arm, dict) or not isinstance(arm.get("label"), str):
            raise refuse(f'holds the arm {arm!r:.40} without a "label"')
    for run in results["runs"]:
        good = isinstance(run, dict) and isinstance(run.get("arm"), str)
        if (
            not good
            or not isinstance(run.get("seed"), int)
            or not isinstance(run.get("test"), dict)
        ):
            raise refuse(f'holds the run {run!r:.40} without "arm", "seed" and "test"')


def _read_history(path: Path) -> tuple[list[dict[str, Any]], int]:
    records, skipped = [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in filter(str.strip, lines):
        try:
            record = json.loads(line)
            complete = (
                isinstance(record["arm"], str)
                and isinstance(record["kind"], str)
                and isinstance(record["seed"], int)
                and isinstance(record["epoch"], (int, float))
            )
        except (ValueError, KeyError, TypeError):
            complete = False
        if complete:
            records.append(record)
        else:
            skipped += 1
    return records, skipped
