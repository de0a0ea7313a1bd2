"""Fuzzing: whatever a file or a command line holds, it is read, or refused in one line.

Each target of `fuzz_cases.py` turns drawn input into a call of a reader of evostep's. Valid files
are bent: values are replaced, keys taken away, bytes flipped, ends cut off. A reader may return, or
raise `InputError` (the parser of YAML its own error); a whole command ends with 0, 1 or 2 and never
by a traceback. What is read from a checkpoint or from weights whose bytes were flipped must be what
was written. Faults are told by kind, with an example; the exit code is 1 where there is one.

    python benchmarks/fuzz.py --cases 100000 --main 5000 --json fuzz.json
    python benchmarks/fuzz.py --only scores --cases 5000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import hypothesis
import torch
from fuzz_cases import COMMANDS, TARGETS, run_command

from evostep.errors import InputError


class Faults:
    """What went wrong, by kind: where it was raised."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def note(self, name: str, case: Any, error: BaseException) -> None:
        """Count a fault; keep the first example of its kind."""
        frames = traceback.extract_tb(error.__traceback__)  # none, where it was not raised
        own = [f for f in frames if "evostep" in f.filename] or frames
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "no place"
        kind = f"{name}: {type(error).__name__} at {where}"
        if isinstance(error, AssertionError):
            kind = f"{name}: {str(error).splitlines()[0][:60]}"
        entry = self.found.setdefault(
            kind, {"count": 0, "error": str(error)[-400:], "case": repr(case)[:2000]}
        )
        entry["count"] += 1


def fuzz(name: str, cases: int, faults: Faults | None = None, *, seed: int = 0) -> int:
    """Run one target on drawn cases.

    Args:
        name: of the target, or ``"main"``.
        cases: how many.
        faults: to note what goes wrong and go on; None: the first fault is raised.
        seed: of what is drawn.

    Returns:
        How many were refused, rightly.
    """
    strategy, function = (COMMANDS, run_command) if name == "main" else TARGETS[name]
    refused = 0
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def attempt(case: Any) -> None:
            nonlocal refused
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = function(Path(folder), case)
                refused += isinstance(result, int) and result == 2
            except InputError as error:
                refused += 1
                if "\n" in str(error):
                    _fault(
                        name, case, AssertionError(f"an error of several lines: {error}"), faults
                    )
            except Exception as error:
                _fault(name, case, error, faults)

        attempt()
    return refused


def _fault(name: str, case: Any, error: Exception, faults: Faults | None) -> None:
    if faults is None:
        raise error
    faults.note(name, case, error)


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main(arguments: list[str] | None = None) -> int:
    """Run the fuzzing, and tell what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000, help="for all readers together")
    parser.add_argument("--main", type=int, default=5_000, help="through the whole command line")
    parser.add_argument("--only", help="one target alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = {name: options.cases // len(TARGETS) + 1 for name in TARGETS} | {"main": options.main}
    if options.only:
        plan = {options.only: options.main if options.only == "main" else options.cases}
    faults, rows, began = Faults(), [], time.perf_counter()
    for name, cases in plan.items():
        start = time.perf_counter()
        refused = fuzz(name, cases, faults, seed=options.seed)
        rows.append(
            {
                "target": name,
                "cases": cases,
                "refused": refused,
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(
            f"{name:<14} {cases:>7,} cases, {refused:>7,} refused, {rows[-1]['seconds']:>7.1f} s",
            flush=True,
        )
    for kind, entry in faults.found.items():
        print(f"\nFAULT {kind}, {entry['count']} times: {entry['error']}\n  {entry['case'][:500]}")
    total = sum(row["cases"] for row in rows)
    print(
        f"{total:,} cases, {len(faults.found)} kinds of faults, {time.perf_counter() - began:.0f} s"
    )
    if options.json:
        record = {
            "rows": rows,
            "faults": faults.found,
            "seed": options.seed,
            "python": platform.python_version(),
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return bool(faults.found)


if __name__ == "__main__":
    sys.exit(main())
