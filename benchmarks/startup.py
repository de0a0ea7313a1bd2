"""How long help, version, lists and typing errors take, and what importing evostep adds to torch.

Every case is a process of its own, one of each case in turn, so that what else the machine does
falls on all alike. Help has a second at most, and so has what the import of every public name
takes beyond `import torch`; the exit code is 1 where a median is above.

    python benchmarks/startup.py --repeats 9 --json startup.json
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evostep.lab.comparison.environment import cpu_name

# a case -> the words after `python`, and the exit code that is right
MAIN = "import sys; from evostep.cli import main; sys.exit(main())"
CASES: dict[str, tuple[list[str], int]] = {
    "python -c pass": (["-c", "pass"], 0),
    "evostep --help": (["-c", MAIN, "--help"], 0),
    "evostep --version": (["-c", MAIN, "--version"], 0),
    "evostep methods": (["-c", MAIN, "methods"], 0),
    "evostep list": (["-c", MAIN, "list"], 0),
    "evostep list metrics": (["-c", MAIN, "list", "metrics"], 0),
    "evostep polish --help": (["-c", MAIN, "polish", "--help"], 0),
    "evostep compare --help-all": (["-c", MAIN, "compare", "--help-all"], 0),
    "a command mistyped: evostep polsih": (["-c", MAIN, "polsih"], 2),
    "an option mistyped: evostep compare --sede 3": (["-c", MAIN, "compare", "--sede", "3"], 2),
    "an arm mistyped: evostep compare --arms sdg": (["-c", MAIN, "compare", "--arms", "sdg"], 2),
    "import evostep": (["-c", "import evostep"], 0),
    "import torch": (["-c", "import torch"], 0),
    "import torch, evostep's every name": (["-c", "import torch\nfrom evostep import *"], 0),
}
BASE, BEYOND = "import torch", "import torch, evostep's every name"
MOST = 1.0  # seconds, of the median


def seconds_of(case: str) -> float:
    """Run a case once.

    Raises:
        SystemExit: it leaves with another exit code than it should.
    """
    words, code = CASES[case]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode != code:
        raise SystemExit(f"{case} left with {done.returncode}, not {code}: {done.stderr[-500:]}")
    return took


def summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Return median, smallest and largest of each case, and of what the names add to torch."""
    for case in CASES:
        seconds_of(case)  # what Python writes when a file is first read
    took: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(repeats):
        for case, values in took.items():
            values.append(seconds_of(case))
    found = {case: summary(values) for case, values in took.items()}
    added = [more - base for more, base in zip(took[BEYOND], took[BASE], strict=True)]
    return {**found, "beyond import torch": summary(added)}


def table(found: dict[str, dict[str, float]]) -> str:
    lines = ["| | seconds, median (min-max) |", "|:--|--:|"]
    for case, one in found.items():
        shown = f"`{case}`" if case.startswith(("python", "evostep", "import evostep")) else case
        lines.append(f"| {shown} | {one['median']:.2f} ({one['min']:.2f}-{one['max']:.2f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="processes of each case")
    parser.add_argument("--json", type=Path, help="file for what was measured")
    options = parser.parse_args()
    found = measure(options.repeats)
    about: dict[str, Any] = {
        "repeats": options.repeats,
        "date": datetime.date.today().isoformat(),
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
    if options.json is not None:
        options.json.write_text(json.dumps({**about, "seconds": found}, indent=1) + "\n")
    print(table(found))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    bound = [case for case in found if case.startswith(("evostep", "a", "beyond"))]
    slow = [case for case in bound if found[case]["median"] > MOST]
    if slow:
        raise SystemExit(f"above {MOST:g} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
