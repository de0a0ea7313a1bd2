"""Time and peak memory of one OpenAI-ES generation, beside plain inference on as many images.

Each case runs in a process of its own, so that its peak memory is its own; cases are interleaved
over repeats, so that a drift of the machine's speed hits all of them. Ratios of one run count, not
absolute times.

    python benchmarks/generation.py --json generation.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import evostep


def measure(
    population: int, images: int, batch: int, threads: int, generation: bool
) -> dict[str, float]:
    """Score the parent and `population` members once, or run as many plain inferences."""
    from torchvision.models import resnet18

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    batches = [
        (torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))) for _ in range(images // batch)
    ]
    fitness = evostep.Fitness(model, batches, "accuracy")
    fitness()  # warm up, and read the batches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    if generation:
        strategy = evostep.OpenAIES(sigma=0.02, lr=0.004, population=population)
        evolution = evostep.Evolution(model, strategy, accept=evostep.Always())
        (record,) = evolution.evolve(fitness)
        assert record.sample_forwards == (population + 1) * images
    else:
        with torch.no_grad():
            for _ in range(population + 1):
                for inputs, _ in batches:
                    model(inputs)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "seconds": seconds,
        "peak_mb": peak * 1024 / 1e6,
        "extra_mb": (peak - before) * 1024 / 1e6,
        "parameters_mb": parameters / 1e6,
    }


def run_case(options: argparse.Namespace, population: int, generation: bool) -> dict[str, float]:
    """Measure one case in a process of its own."""
    command = [sys.executable, __file__, "--case", str(population), str(int(generation))]
    command += ["--images", str(options.images), "--batch", str(options.batch)]
    command += ["--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--populations", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        population, generation = options.case
        case = measure(population, options.images, options.batch, options.threads, bool(generation))
        print(json.dumps(case))
        return
    runs: dict[tuple[int, bool], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for population in options.populations:
            for generation in (False, True):
                case = run_case(options, population, generation)
                runs.setdefault((population, generation), []).append(case)
    rows = [summarise(runs, population) for population in options.populations]
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": options.threads,
        "images": options.images,
        "repeats": options.repeats,
    }
    print(f"resnet18 at 32x32, {options.images} images, {options.repeats} repeats, {machine}")
    print("population  inference s  generation s  ratio (min-max)      inference MB  generation MB")
    for row in rows:
        print(
            f"{row['population']:>10}  {row['inference_s']:>11.2f}  {row['generation_s']:>12.2f}  "
            f"{row['ratio']:.3f} ({row['ratio_min']:.3f}-{row['ratio_max']:.3f})  "
            f"{row['inference_mb']:>12.0f}  {row['generation_mb']:>13.0f}"
        )
    print(f"parameters: {rows[0]['parameters_mb']:.0f} MB; MB are peaks of the whole process")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def summarise(
    runs: dict[tuple[int, bool], list[dict[str, float]]], population: int
) -> dict[str, float]:
    """Give medians, and the ratio pair by pair."""
    plain, evolved = runs[population, False], runs[population, True]
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(plain, evolved, strict=True)]
    return {
        "population": population,
        "inference_s": statistics.median(case["seconds"] for case in plain),
        "generation_s": statistics.median(case["seconds"] for case in evolved),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "inference_mb": statistics.median(case["peak_mb"] for case in plain),
        "generation_mb": statistics.median(case["peak_mb"] for case in evolved),
        "parameters_mb": plain[0]["parameters_mb"],
    }


if __name__ == "__main__":
    main()
