"""What each engine's generation costs: beside plain inference, and beside scoring in place.

Each side of a case runs in a process of its own, so that its peak memory is its own, and begins
with a generation to warm up. Sides are interleaved over repeats, and a generation has its plain
inferences right before and after it, so that a drift of the machine's speed hits all of them.
Ratios of one run count, not absolute times. What is done is written after each case; the same
command goes on where it stopped.

    python benchmarks/engines.py --json engines.json
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from cases import Case, Figure, make_cases
from peers import describe_machine

PACKAGES = ("torch", "torchvision", "numpy", "evostep")


def run_side(name: str, side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a side in a process of its own; give `{"missing": reason}` where that failed."""
    command = [sys.executable, __file__, "--one", name, side, "--threads", str(options.threads)]
    command += ["--full"] if options.full else []
    if options.population_at_most:
        command += ["--population-at-most", str(options.population_at_most)]
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(variables, str(options.threads))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"missing": f"failed: {lines[-1]}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_case(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Repeat all sides of a case, backwards and forwards in turn.

    Backwards first: where the engine in question is missing, the slow side is spared.
    """
    order = list(case.sides)
    missing: dict[str, str] = {}
    runs: list[dict[str, Any]] = []
    for repeat in range(_repeats(case, options)):
        found: dict[str, Any] = {}
        for side in order if repeat % 2 else order[::-1]:
            if not any(
                side in figure.sides and not missing.keys() & set(figure.sides)
                for figure in case.figures
            ):
                continue  # it is missing, or nothing can be made of it
            one = run_side(name, side, options)
            if "missing" in one:
                missing[side] = one["missing"]
                continue
            print(f"# {name} {repeat + 1} {side}: {one['seconds']:.4g} s", file=sys.stderr)
            found[side] = one
        if found:
            runs.append(found)
    figures = [_summarise(figure, runs) for figure in case.figures]
    return {
        "title": case.title,
        "note": case.note,
        "date": _now(),
        "settings": _settings(case, options),
        "figures": figures,
        "missing": missing,
        "runs": runs,
    }


def _summarise(figure: Figure, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median, least and greatest of a figure over the repeats that have its sides."""
    values = [figure.of(found) for found in runs if all(side in found for side in figure.sides)]
    row: dict[str, Any] = {"figure": figure.title, "least": figure.least, "most": figure.most}
    if not values:
        return row | {"values": [], "median": None, "reached": None}
    median = statistics.median(values)
    spread = {"median": median, "min": min(values), "max": max(values)}
    return row | spread | {"values": values, "reached": figure.reached(median)}


def show(name: str, result: dict[str, Any]) -> None:
    """Print one case."""
    repeats = len(result["runs"])
    print(f"\n{name}: {result['title']}; {repeats} repeats")
    for side in {side: None for found in result["runs"] for side in found}:
        runs = [found[side] for found in result["runs"] if side in found]
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = statistics.median(run["peak_mb"] for run in runs)
        print(f"  {side:14} {seconds:9.4g} s  peak {peak:6.0f} MB  {runs[0]['networks']} networks")
    for row in result["figures"]:
        if row["median"] is None:
            print(f"  {row['figure']:62} not available")
            continue
        spread = f"{row['median']:.3f} ({row['min']:.3f}-{row['max']:.3f})"
        bounds = [f">= {row['least']:g}"] if row["least"] is not None else []
        bounds += [f"<= {row['most']:g}"] if row["most"] is not None else []
        verdict = {None: "", True: "reached", False: "MISSED"}[row["reached"]]
        print(f"  {row['figure']:62} {spread:26} {' and '.join(bounds):20} {verdict}".rstrip())
    for side, reason in result["missing"].items():
        print(f"  {side}: not available: {reason}")
    if result["note"]:
        print(f"  {result['note']}")
    sys.stdout.flush()


def _repeats(case: Case, options: argparse.Namespace) -> int:
    repeats: int = options.repeats
    return min(case.repeats or repeats, repeats)


def _settings(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return what must be equal for a result to count as that of this command."""
    return {**case.settings(), "repeats": _repeats(case, options), "threads": options.threads}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _earlier(path: Path | None, environment: dict[str, Any]) -> dict[str, Any]:
    """Read the cases that a file has from this very environment."""
    if path is None or not path.exists():
        return {}
    before = json.loads(path.read_text())
    if any(_lasting(before[key]) != _lasting(value) for key, value in environment.items()):
        sys.exit(f"{path} is from another machine or other versions: give --json another file")
    return dict(before["cases"])


def _lasting(environment: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs from one minute to the next."""
    return {key: value for key, value in environment.items() if key != "load_before"}


def _write(path: Path, report: dict[str, Any]) -> None:
    """Write all or nothing: an interruption leaves the file as it was."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", help="names, separated by commas (all)")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="prefix cases: 64 members in place")
    parser.add_argument("--population-at-most", type=int, help="an even number, for a quick trial")
    parser.add_argument("--json", type=Path, help="goes on with what the file has already")
    parser.add_argument("--again", action="store_true", help="measure what the file has anew")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure the cases and print each as soon as it is done."""
    options = _parse()
    known = {
        name: case.at_most(options.population_at_most)
        for name, case in make_cases(options.full).items()
    }
    if options.one:
        from engines_side import measure  # which imports torch

        name, side = options.one
        print(json.dumps(measure(known[name], known[name].sides[side], options.threads)))
        return
    if options.list:
        for name, case in known.items():
            print(f"{name:24} {case.title}")
        return
    names = options.cases.split(",") if options.cases else list(known)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"unknown case {unknown[0]!r}: choose from {', '.join(known)}")
    measure_cases({name: known[name] for name in names}, options)


def measure_cases(cases: dict[str, Case], options: argparse.Namespace) -> None:
    """Measure what the file does not have yet; write it after each case."""
    # --json is a place on this machine, and --again says nothing about the numbers
    command = ["python benchmarks/engines.py", "--repeats", str(options.repeats)]
    command += ["--threads", str(options.threads), *(["--full"] if options.full else [])]
    if options.population_at_most:
        command += ["--population-at-most", str(options.population_at_most)]
    environment = {"machine": describe_machine(), "versions": _versions()}
    done = _earlier(options.json, environment)
    print(f"# {' '.join(command)}; {_now()}; {environment}")
    for name, case in cases.items():
        before = done.get(name)
        wanted = None if options.again else _settings(case, options)
        if before is not None and before["settings"] == wanted and not before["missing"]:
            print(f"\n# {name}: in {options.json.name} already, from {before['date']}")
            show(name, before)
            continue
        now = {"command": " ".join([*command, "--cases", name]), "machine": describe_machine()}
        done[name] = measure_case(name, case, options) | now
        show(name, done[name])
        if options.json:
            report = {"date": _now(), "command": " ".join(command), **environment, "cases": done}
            _write(options.json, report)
    print("\nMedians (min-max) over repeats, of ratios of runs of one repeat. MB: 1e6 bytes.")


if __name__ == "__main__":
    main()
