"""Time and peak memory of one generation of an OpenAI-ES-like method: evostep beside its peers.

All work on the same model and the same examples; `peer_adapters` has one file for each, which says
how it is called. Each run is a process of its own, pinned to as many cores as it has threads, with
a generation to warm up; methods are interleaved over repeats, so that a drift of the machine's
speed hits all of them. Ratios of one run count, not absolute times. Whatever is not installed is
left out; `requirements.txt` beside this file has the peers.

    python benchmarks/peers.py --json peers.json
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

# torch is imported in the measuring processes alone: on Linux a process counts the memory that its
# parent held when it began as a peak of its own.


class Case(NamedTuple):
    """One task; `timed` generations in each process, the median of which counts."""

    title: str
    package: str  # that the model or the examples come from
    population: int
    inferences: int  # networks in one timed plain inference
    timed: int
    methods: tuple[str, ...]


CASES = {
    "resnet18": Case(
        "resnet18 at 32x32, 1,000 examples in 2 batches",
        package="torchvision",
        population=16,
        inferences=8,
        timed=1,
        methods=(
            "inference",
            "evostep_dense",
            "evostep_in_place",
            "evotorch_pgpe",
            "deepcopy_loop",
        ),
    ),
    "mlp": Case(
        "mlp 64-32-10 on digits, 300 examples in 1 batch",
        package="scikit-learn",
        population=256,
        inferences=256,
        timed=10,
        methods=(
            "inference",
            "evostep_dense",
            "evotorch_pgpe",
            "evotorch_functional",
            "evosax_open_es",
            "deepcopy_loop",
            "evostep_lowrank",
            "eggroll_trainer_rank1",
            "torcheggroll_rank1",
        ),
    ),
}
RIVALS = {"eggroll_trainer_rank1": "evostep_lowrank", "torcheggroll_rank1": "evostep_lowrank"}
FITNESS = "minus the mean cross-entropy on all examples, or the cross-entropy, minimised"


def measure(case: Case, name: str, method: str, threads: int) -> dict[str, Any]:
    """Time `method` in this process; give `{"missing": reason}` where it is not installed."""
    if hasattr(os, "sched_setaffinity"):  # the one way to tell every library, XLA included
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        import torch
        from peer_adapters.task import infer, make_task

        torch.set_num_threads(threads)
        adapter = importlib.import_module(f"peer_adapters.{method}")
        plain = method == "inference"
        task = make_task(name, case.inferences if plain else case.population, threads)
    except ImportError as error:
        return {"missing": str(error)}
    infer(task)
    before = _peak_mb()
    generation = adapter.prepare(task)
    if not plain:
        generation()  # warm up: caches, compilers, memory
    seconds = []
    for _ in range(case.timed):
        began = time.perf_counter()
        generation()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds),
        "generations": seconds,
        "networks": task.population + adapter.SCORES_PARENT,
        "peak_mb": _peak_mb(),
        "extra_mb": _peak_mb() - before,
        "called": adapter.CALLED,
        "notes": adapter.NOTES,
        "versions": {package: _version(package) for package in (*adapter.PACKAGES, case.package)},
    }


def _peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return str(getattr(sys.modules.get(package), "__version__", "unknown"))


def run(name: str, method: str, threads: int) -> dict[str, Any]:
    """Measure in a process of its own; give `{"missing": reason}` where that failed."""
    command = [sys.executable, __file__, "--one", name, method, "--threads", str(threads)]
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(variables, str(threads))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"missing": f"failed: {lines[-1]}"}
    # of the user, not of a library's own code; without the files, which are this machine's own
    warned = re.findall(r"(?:User|Runtime)Warning: .*", done.stderr)
    # what a library prints comes before the last line
    return {**json.loads(done.stdout.splitlines()[-1]), "warnings": warned}


def measure_case(name: str, methods: Iterable[str], repeats: int, threads: int) -> dict[str, Any]:
    """Repeat all methods of a case, forwards and backwards in turn; give its rows."""
    order = [method for method in CASES[name].methods if method in methods]
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in order}
    left_out: dict[str, str] = {}
    for repeat in range(repeats):
        for method in order if repeat % 2 == 0 else order[::-1]:
            if method in left_out:
                continue
            found = run(name, method, threads)
            if "missing" in found:
                left_out[method] = found["missing"]
                del runs[method]
                continue
            print(f"# {name} {repeat + 1}/{repeats} {method}: {found['seconds']:.4g} s", flush=True)
            runs[method].append(found)
    rows = [summarise(method, runs) for method in runs]
    case = CASES[name]._asdict() | {"name": name, "fitness": FITNESS}
    return case | {"rows": rows, "left_out": left_out, "runs": runs}


def summarise(method: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians, and ratios of runs of one repeat."""
    own, plain = runs[method], runs.get("inference", [])
    rival = RIVALS.get(method, "evostep_dense")
    peer = not method.startswith(("evostep", "inference"))
    against = [(a["seconds"], b["seconds"]) for a, b in zip(own, runs.get(rival, []), strict=False)]
    networks = own[0]["networks"]
    floors = [networks * run["seconds"] / run["networks"] for run in plain]
    row: dict[str, Any] = {
        "method": method,
        "networks": networks,
        "seconds": _spread([run["seconds"] for run in own]),
        "to_inference": _spread([a["seconds"] / b for a, b in zip(own, floors, strict=False)]),
        "rival": rival if peer and against else None,
        "to_rival": _spread([a / b for a, b in against]) if peer else None,
        "peak_mb": statistics.median(run["peak_mb"] for run in own),
        "extra_mb": statistics.median(run["extra_mb"] for run in own),
        "above_inference_mb": None,
    }
    if plain:
        above = [a["peak_mb"] - b["peak_mb"] for a, b in zip(own, plain, strict=False)]
        row["above_inference_mb"] = statistics.median(above)
    return row | {key: own[0][key] for key in ("called", "notes", "versions", "warnings")}


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(case: dict[str, Any]) -> None:
    """Print one case's table and what belongs to it."""
    print(f"\n{case['title']}, population {case['population']}; fitness: {case['fitness']}")
    heads = ("s", "/ (networks x inference)", "/ evostep", "peak", "extra", "above")
    print("{:22} networks {:>8} {:>26} {:>22} {:>6} {:>6} {:>6} MB".format("", *heads))
    for row in case["rows"]:
        above = row["above_inference_mb"]
        last = "-" if above is None else f"{above:.0f}"
        print(
            f"{row['method']:22} {row['networks']:>8} {row['seconds']['median']:>8.4g} "
            f"{_range(row['to_inference']):>26} {_range(row['to_rival']):>22} "
            f"{row['peak_mb']:>6.0f} {row['extra_mb']:>6.0f} {last:>6}"
        )
    for row in case["rows"]:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        rival = f"; against {row['rival']}" if row["rival"] not in (None, "evostep_dense") else ""
        print(f"  {row['method']} ({versions}{rival}): {row['called']}")
        for note in filter(None, (row["notes"], *row["warnings"])):
            print(f"    {note}")
    for method, reason in case["left_out"].items():
        print(f"  {method}: left out, {reason}")


def _range(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    return f"{spread['median']:.2f} ({spread['min']:.2f}-{spread['max']:.2f})"


def describe_machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    return {
        "cpu": processor,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        # of others, before the first run: threads that wait for each other suffer most from it
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def main() -> None:
    """Measure all cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = list(dict.fromkeys(method for case in CASES.values() for method in case.methods))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, method = options.one
        print(json.dumps(measure(CASES[name], name, method, options.threads)))
        return
    command = ["python benchmarks/peers.py", "--cases", *options.cases]
    command += ["--repeats", str(options.repeats), "--threads", str(options.threads)]
    if options.methods != known:
        command += ["--methods", *options.methods]
    report: dict[str, Any] = {
        "command": " ".join(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": describe_machine(),
        "settings": {"repeats": options.repeats, "threads": options.threads},
        "cases": [],
    }
    print(f"# {report['command']}; {report['date']}; {report['machine']}")
    for name in options.cases:
        case = measure_case(name, options.methods, options.repeats, options.threads)
        report["cases"].append(case)
        show(case)
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(
        "\nMedians; (min-max) over repeats of ratios of runs of one repeat. MB: peak of the whole "
        "process; extra: what it\ngained after its imports and one plain inference; above: its "
        "peak less that of plain inference in its own process."
    )


if __name__ == "__main__":
    main()
