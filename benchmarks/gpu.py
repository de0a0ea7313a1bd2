"""Everything that a graphics card is needed for, in one command and under ten minutes.

Four parts, each in processes of its own, so that one that fails, or takes too long, is told in the
report and the others go on: the tests that run on the device; a generation of each engine beside
plain inference, float32 and bfloat16, with its peak memory; the article's experiment, 50,000
images, 50 epochs, evolution in the last 10, with its controls, seed after seed as long as time is
left. The report is written after each part, and the same command goes on with the article.

    python benchmarks/gpu.py --data-dir DIR --out gpu
    python benchmarks/gpu.py --tiny --device cpu --out gpu-tiny
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cases import Side

ROOT = Path(__file__).resolve().parent.parent
ARTICLE = ROOT / "configs" / "article.yaml"
# task -> examples, batch, population, what `prefix` may move
TASKS = {"resnet18": (5000, 1000, 16, "fc.*"), "transformer-100m": (512, 128, 16, "head.*")}
TINY = {"resnet18": (8, 8, 4, "fc.*"), "transformer": (8, 8, 4, "head.*")}
TINY_ARTICLE = (
    *("--data", "digits", "--model", "small-cnn", "--train-size", "100", "--fitness-size", "50"),
    *("--epochs", "3", "--evolve-from", "2", "--generations", "1", "--population", "4"),
)
TYPES = ("float32", "bfloat16")
PARTS = ("tests", "engines", "article")
SHARE = {"tests": 0.2, "engines": 0.5}  # of the minutes, at most; the article has what is left


def sides(population: int, only: str) -> dict[str, Side]:
    """Return what is timed of a model."""
    return {
        "inplace": Side("inplace", population),
        "vmap": Side("vmap", population),
        "lowrank": Side("lowrank", population, noise="lowrank"),
        "prefix": Side("prefix", population, only=(only,)),
    }


def measure(task: str, kind: str, device: str, tiny: bool) -> dict[str, Any]:
    """Time a generation of each engine on a model, in this process."""
    import torch
    from engines_side import infer, make_generation, make_task

    examples, batch, population, only = (TINY if tiny else TASKS)[task]
    place = torch.device(device)
    model, batches = make_task(task, examples, batch)
    model = model.to(place)
    batches = [(inputs.to(place), targets.to(place)) for inputs, targets in batches]
    repeats = 1 if tiny else 3
    autocast = kind == "bfloat16"

    def plain() -> None:
        with torch.autocast(place.type, torch.bfloat16) if autocast else nullcontext():
            infer(model, batches, 1)

    def timed(call: Callable[[], object]) -> dict[str, float]:
        call()  # warms up; an engine is checked on its first use
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            if place.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return {"seconds": statistics.median(seconds), "peak_mb": _peak_mb(place.type)}

    parameters = sum(p.numel() for p in model.parameters())
    found: dict[str, Any] = {"inference": timed(plain) | {"networks": 1}}
    for name, side in sides(population, only).items():
        side = Side(**{**vars(side), "autocast": autocast})
        try:
            one = timed(make_generation(model, batches, side))
        except Exception as error:  # one engine out of memory is told
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        one["networks"] = population + 1
        one["x inference"] = one["seconds"] / (one["networks"] * found["inference"]["seconds"])
        found[name] = one
    shape = {"parameters": parameters, "examples": examples, "population": population}
    return {**shape, "device": _device_name(place), "torch": torch.__version__, "sides": found}


def _peak_mb(kind: str) -> float:
    """Return the peak since the last reset; on a CPU that of the process so far."""
    import torch

    if kind == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def run(command: list[str], seconds: float) -> str:
    """Run a command of the project's; return what it printed.

    Raises:
        RuntimeError: it failed, or took longer; the message is its last line.
    """
    if seconds <= 0:
        raise RuntimeError("no time was left for it: give more --minutes")
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            printed, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # what is done is kept
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
            raise RuntimeError(f"stopped after {seconds:.0f} s") from None
    if process.returncode:
        lines = (errors.strip() or printed.strip()).splitlines() or ["nothing was printed"]
        raise RuntimeError(f"exit status {process.returncode}: {lines[-1]}")
    return printed


def test(options: argparse.Namespace, until: float) -> dict[str, Any]:
    """Run the tests of the device."""
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-q"]
    command += ["tests/test_devices.py", "-k", options.device.partition(":")[0]]
    printed = run(command, until - time.time())
    return {"command": " ".join(command[1:]), "outcome": printed.strip().splitlines()[-1]}


def time_engines(options: argparse.Namespace, until: float) -> dict[str, Any]:
    """Time each model in each type, in a process of its own."""
    found: dict[str, Any] = {}
    for task in TINY if options.tiny else TASKS:
        for kind in TYPES:
            command = [sys.executable, __file__, "--one", task, kind, "--device", options.device]
            command += ["--tiny"] if options.tiny else []
            found[f"{task}, {kind}"] = tried(
                lambda command=command: json.loads(  # type: ignore[misc]
                    run(command, until - time.time()).splitlines()[-1]
                )
            )
    return found


def compare(options: argparse.Namespace, until: float) -> dict[str, Any]:
    """Run the article's comparison with one more seed as long as another one fits."""
    out = options.out.resolve() / "article"
    command = [sys.executable, "-m", "evostep", "compare", "--config", str(ARTICLE)]
    command += ["--out", str(out), "--device", options.device]
    command += ["--data-dir", str(options.data_dir.resolve())] if options.data_dir else []
    command += TINY_ARTICLE if options.tiny else []
    found: dict[str, Any] = {"command": " ".join(command[1:]), "seconds": [], "seeds": 0}
    for seeds in range(1, 1 + options.seeds):
        began = time.time()
        if time.time() + max(found["seconds"], default=0.0) > until:
            break
        try:
            run([*command, "--seeds", str(seeds)], until - time.time())
        except RuntimeError as error:
            found["error"] = str(error)
            break
        found["seconds"].append(time.time() - began)
        found["seeds"] = seeds
    found["runs"] = len([*out.glob("runs/*/result.json")])
    if found["seeds"]:
        found["results"] = json.loads((out / "results.json").read_text())
        found["page"] = str(out / "report.html")
    elif "error" in found:
        raise RuntimeError(f"{found['error']}; {found['runs']} runs are finished")
    return found


def tried(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a call does, or its error, and how long it took."""
    began = time.time()
    try:
        found = call()
    except Exception as error:  # whatever it is, the other parts go on
        found = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "took": round(time.time() - began, 1)}


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# {report['device']}, {report['date']}", ""]
    lines += ["| part | outcome | seconds |", "|:--|:--|--:|"]
    for name, part in report["parts"].items():
        good = part.get("outcome") or (f"{part['seeds']} seeds" if "seeds" in part else "done")
        lines.append(f"| {name} | {part.get('error', good)} | {part['took']} |")
    lines += ["", "| model | side | seconds | x inference | peak MB |", "|:--|:--|--:|--:|--:|"]
    for title, model in report["parts"].get("engines", {}).items():
        if title == "took" or "error" in model:
            lines += [f"| {title} | {model['error']} | | | |"] if title != "took" else []
            continue
        for side, found in model["sides"].items():
            if "error" in found:
                lines.append(f"| {title} | {side} | {found['error']} | | |")
                continue
            ratio = f"{found['x inference']:.2f}" if "x inference" in found else ""
            row = (title, side, f"{found['seconds']:.4g}", ratio, f"{found['peak_mb']:.0f}")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for the report")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data-dir", type=Path, help="holds CIFAR-10")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    parser.add_argument("--seeds", type=int, default=20, help="of the article, at most")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, by commas")
    parser.add_argument("--tiny", action="store_true", help="small enough for a CPU: a trial")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the parts one after the other, and write the report after each."""
    options = _parse()
    if options.one:
        print(json.dumps(measure(*options.one, options.device, options.tiny)))
        return
    do = {"tests": test, "engines": time_engines, "article": compare}
    parts = options.parts.split(",")
    if unknown := [name for name in parts if name not in do]:
        sys.exit(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    path, began = options.out / "gpu.json", time.time()
    end = began + 60 * options.minutes
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    report |= {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")}
    report |= {"tiny": options.tiny, "device": options.device}
    for name in parts:
        until = min(end, time.time() + SHARE.get(name, 1.0) * 60 * options.minutes)
        report["parts"][name] = tried(lambda name=name, until=until: do[name](options, until))  # type: ignore[misc]
        models = [*report["parts"].get("engines", {}).values()]
        names = [m["device"] for m in models if isinstance(m, dict) and "device" in m]
        report["device"] = names[0] if names else options.device
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(report, indent=1) + "\n")
        part.replace(path)
        (options.out / "gpu.md").write_text(table(report))
    print(table(report))
    print(f"{time.time() - began:.0f} s; {path}")


if __name__ == "__main__":
    main()
