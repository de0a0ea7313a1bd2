"""What a comparison left behind, read and checked: results.json and history.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evostep.errors import InputError
from evostep.lab.report import contrasts
from evostep.lab.report.history import MEASURES, read_history
from evostep.lab.storage import mismatch, read_json

_REPAIR = "restore the file, or run `evostep compare --out` into a new directory"

_COUNT = (int, None)
RUN = {
    "arm": str,
    "seed": int,
    "test": {str: (float, None)},
    **dict.fromkeys(("train?", "fitness?", "accept?"), MEASURES),
    **dict.fromkeys(("sample_forwards?", "epochs?"), _COUNT),
    **dict.fromkeys(("generations?", "accepted?", "failed?"), _COUNT),
    "seconds?": (float, None),
    "diverged?": (str, None),
    "environment?": {str: (str, float, None)},
}
_CONTRAST = {
    **dict.fromkeys(("hypothesis", "arm", "metric"), str),
    "controls": [str],
    "seeds": [int],
}
_ARM = {"label": str, "method?": str, "control?": bool}
RESULTS = {
    "runs": [RUN],
    "config?": {
        "arms?": [_ARM],
        "seeds?": ([int], None),
        "budget?": _COUNT,
        "contrast?": (_CONTRAST, None),
        **dict.fromkeys(("metric?", "model?", "data?"), (str, None)),
    },
    "environment?": {str: (str, float, None)},
    "data?": {"title?": (str, None)},
    "splits?": {str: {str: object}},
}


def read_records(
    directory: Path,
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Read the records of a comparison.

    Returns:
        As `read_results`; the records of the history, and the number of its lines that could not
        be read, as `history.read_history`.

    Raises:
        InputError: `results.json` is missing, malformed or of another format.
    """
    return read_results(directory), *read_history(directory / "history.jsonl")


def read_results(directory: Path) -> dict[str, Any]:
    """Return the results of a comparison, with "arms" and "contrasts" computed from its runs.

    Raises:
        InputError: `results.json` is missing, malformed or of another format.
    """
    path = directory / "results.json"
    if not path.exists():
        raise InputError(
            f"no results.json in {str(directory)!r}: "
            "give the directory that `evostep compare --out` wrote"
        )
    results = read_json(path, cure=_REPAIR)
    if isinstance(results, dict) and {"format", "arguments"} <= results.keys():
        raise InputError(
            f"{str(directory)!r} holds what `evostep polish` or `evaluate` wrote, which is whole: "
            "give a directory of `evostep compare`"
        )
    if wrong := mismatch(results, RESULTS):
        raise InputError(f"{path} is not what evostep wrote ({wrong}): {_REPAIR}")
    for key in ("config", "environment", "data", "splits"):
        results.setdefault(key, {})
    try:
        return contrasts.with_statistics(results)
    except ValueError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
