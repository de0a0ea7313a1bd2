"""How the cost of a generation grows with parameters, population and examples, for each engine.

An mlp of three layers on 64 inputs; each panel varies one thing and keeps the others at `BASE`.
Engines are interleaved point by point; the first generation warms up, and where that one took long
fewer are timed. "Plain inference" is (population + 1) forwards of one network.

    python benchmarks/growth.py --json growth.json --figure docs/figures/cost-growth.png
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cases import Side
from engines_side import infer, make_generation, mlp
from peers import describe_machine

from evostep.engines.auto import Auto


@dataclass(frozen=True)
class Point:
    """One size of a generation's work; `width` of the two hidden layers."""

    width: int = 280  # 1e5 parameters
    population: int = 32
    examples: int = 256


BASE = Point()
PANELS = {
    "parameters": [replace(BASE, width=width) for width in (12, 70, 280, 963, 3125)],
    "population": [replace(BASE, population=n) for n in (8, 16, 32, 64, 128, 256, 512)],
    "examples": [replace(BASE, examples=n) for n in (32, 64, 128, 256, 512, 1024, 2048, 4096)],
}
# name -> label, colour (Okabe and Ito's, told apart by colour-blind readers), marker
LINES = {
    "inplace": ("in place, normal noise", "#0072B2", "o"),
    "vmap": ("vmap, normal noise", "#D55E00", "s"),
    "lowrank": ("low rank, noise of rank 1", "#009E73", "^"),
    "inference": ("plain inference of as many networks", "#555555", None),
}
_ENOUGH = 0.3  # seconds of an engine's generations at a point, times the repeats
_LONG = 2.0  # a generation of so many seconds is timed once
_HURRY = 120.0  # after so many seconds in all (a busy machine) each point is timed once


def time_point(point: Point, engines: list[str], repeats: int) -> dict[str, Any]:
    """Time a generation of each engine, and the plain inference of as many networks."""
    torch.manual_seed(0)
    model = mlp(64, point.width, point.width, 10).eval()
    batches = [(torch.randn(point.examples, 64), torch.randint(10, (point.examples,)))]
    runs: dict[str, Callable[[], object]] = {
        "inference": lambda: infer(model, batches, point.population + 1)
    }
    failed: dict[str, str] = {}
    for engine in engines:
        noise = "lowrank" if engine == "lowrank" else "normal"
        runs[engine] = make_generation(model, batches, Side(engine, point.population, noise))
    longest = {}
    for name, run in list(runs.items()):
        try:
            longest[name] = _seconds(run)
        except UserWarning as warning:  # the engine gave up
            failed[name] = str(warning)
            del runs[name]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(max(repeats, 1)):
        for name, run in runs.items():
            long = longest[name] > _LONG or sum(seconds[name]) > repeats * _ENOUGH
            if repeat == 0 or not long:
                seconds[name].append(_seconds(run))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "population": point.population,
        "examples": point.examples,
        "seconds": seconds,
        "failed": failed,
    }


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the three panels, log by log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import StrMethodFormatter

    figure, panels = plt.subplots(1, 3, figsize=(12, 4.6), sharey=True, layout="constrained")
    titles = {
        "parameters": "parameters (weights and biases)",
        "population": "population (members in a generation)",
        "examples": "examples (on which each member is scored)",
    }
    for axes, (panel, points) in zip(panels, report["panels"].items(), strict=True):
        for name, (label, colour, marker) in LINES.items():
            own = [point for point in points if name in point["seconds"]]
            if not own:
                continue
            axes.plot(
                [point[panel] for point in own],
                [statistics.median(point["seconds"][name]) for point in own],
                label=label,
                color=colour,
                marker=marker,
                linestyle="--" if marker is None else "-",
            )
        axes.set(xscale="log", yscale="log", xlabel=titles[panel])
        if panel != "parameters":  # powers of two, written out
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.grid(which="major", color="#dddddd")
        axes.set_title(_fixed(panel, report["base"]), fontsize=10)
    panels[0].set_ylabel("time of one generation (s)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    machine, settings = report["machine"], report["settings"]
    figure.suptitle(
        f"One generation of OpenAI-ES on an mlp of three layers; {machine['cpu']}, "
        f"{settings['threads']} threads, torch {report['versions']['torch']}",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _fixed(panel: str, base: dict[str, int]) -> str:
    parameters = f"{base['parameters'] / 1e5:.1g}e5 parameters"
    words = {
        "parameters": parameters,
        "population": f"{base['population']} members",
        "examples": f"{base['examples']} examples",
    }
    return ", ".join(word for name, word in words.items() if name != panel)


def _available(names: list[str]) -> list[str]:
    found = []
    for name in names:
        try:
            Auto.of(name)
        except ValueError as error:
            print(f"# {name}: not available: {error}")
            continue
        found.append(name)
    return found


def main() -> None:
    """Measure all points, print them, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engines = _available([name for name in LINES if name != "inference"])
    command = ["python benchmarks/growth.py", "--repeats", str(options.repeats)]
    report: dict[str, Any] = {
        "command": " ".join([*command, "--threads", str(options.threads)]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": describe_machine(),
        "versions": {"torch": torch.__version__},
        "settings": {"repeats": options.repeats, "threads": options.threads},
        "panels": {},
    }
    began = time.perf_counter()
    measured: dict[Point, dict[str, Any]] = {}
    for panel, points in PANELS.items():
        print(f"\nseconds of a generation by {panel}")
        print(f"{panel:>12}" + "".join(f"{name:>12}" for name in ("inference", *engines)))
        for point in points:
            if point not in measured:
                late = time.perf_counter() - began > _HURRY
                measured[point] = time_point(point, engines, 1 if late else options.repeats)
            row = measured[point]
            cells = [row["seconds"].get(name) for name in ("inference", *engines)]
            texts = ["-" if cell is None else f"{statistics.median(cell):.4g}" for cell in cells]
            print(f"{row[panel]:>12}" + "".join(f"{text:>12}" for text in texts), flush=True)
        report["panels"][panel] = [measured[point] for point in points]
        if options.json:  # what is done outlives an interruption
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    base = measured[BASE]
    report["base"] = {key: base[key] for key in ("parameters", "population", "examples")}
    print(f"\n{report['command']}; {report['machine']}; {time.perf_counter() - began:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.figure:
        draw(report, options.figure)


if __name__ == "__main__":
    main()
