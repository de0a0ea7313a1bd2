"""What long runs and many of them take: memory, seconds, file handles.

`history` writes and reads again a history of a million generations, and draws its report; `report`
does so for a thousand runs; `soak` evolves on digits for as long as it is told, and watches memory
and file handles. Bounds are checked, the exit code is 1 where one is passed. Each part runs in a
process of its own, whose peak is what the system says.

    python benchmarks/load.py history --json history.json
    python benchmarks/load.py report
    python benchmarks/load.py soak --minutes 60
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import evostep
from evostep.lab.data.images import load_data
from evostep.lab.models import build_model
from evostep.lab.report.page import write_report
from evostep.lab.storage import History

# MiB of memory that is resident; seconds of the processor
BOUNDS = {
    "history": {"peak": 1500, "report": 120, "cut": 60},
    "report": {"peak": 1500, "report": 120},
    "soak": {"growth": 20, "handles": 0},
}
MEASURES = {"accuracy": 0.9, "loss": 0.3}


def resident() -> float:
    """Return the memory of this process that is resident, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(found: dict[str, Any], name: str, call: Any) -> None:
    """Call, and note wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    found[name] = round(time.process_time() - cpu, 1)
    found[f"{name} (wall)"] = round(time.perf_counter() - wall, 1)


def a_run(arm: str, seed: int) -> dict[str, Any]:
    """Invent the result of a run."""
    test = {"accuracy": 0.9 + 0.0001 * (seed % 7) + 0.001 * len(arm), "loss": 0.3}
    spent = {"sample_forwards": 10**6, "seconds": 60.0, "generations": 10, "accepted": 4}
    return {"arm": arm, "seed": seed, "test": test, "train": MEASURES, "fitness": MEASURES, **spent}


def write_results(folder: Path, arms: dict[str, str], seeds: range) -> None:
    """Invent ``results.json``."""
    listed = [{"label": label, "method": method} for label, method in arms.items()]
    config = {"data": "digits", "model": "mlp", "metric": "accuracy", "seeds": list(seeds)}
    runs = [a_run(arm, seed) for seed in seeds for arm in arms]
    (folder / "results.json").write_text(
        json.dumps({"config": {**config, "arms": listed}, "runs": runs})
    )


def history(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A history of `--generations`, thousand a phase, of one run: append, cut, report."""
    found: dict[str, Any] = {"generations": options.generations, "start": round(resident())}
    write_results(folder, {"sgd": "sgd", "es": "openai-es"}, range(1))
    told = History(folder / "history.jsonl")
    where = {"arm": "es", "seed": 0}
    with told.path.open("w") as file:  # as `append` writes them
        for g in range(options.generations):
            parent = 0.5 + 0.4 * g / options.generations
            scores = [parent + 0.001 * ((7 * g + 3 * i) % 11 - 6) for i in range(8)]
            spent = {"sample_forwards": 3000 * g, "seconds": 0.1 * g}
            line = {"kind": "generation", **where, "epoch": g // 1000, "generation": g}
            line |= {"scores": scores, "parent": parent, "candidate": max(scores)}
            file.write(json.dumps({**line, "accepted": g % 3 == 0, "failed": 0, **spent}) + "\n")
            if g % 1000 == 999:
                epoch = {"kind": "epoch", **where, "epoch": g // 1000 + 1, "train": MEASURES}
                file.write(json.dumps({**epoch, "fitness": MEASURES, **spent}) + "\n")
    found["file MiB"] = round(told.path.stat().st_size / 2**20)
    told.append({"kind": "generation", **where, "epoch": 10**6, "generation": 0})
    lines = options.generations + options.generations // 1000
    timed(found, "cut", lambda: told.cut("es", 0, lines))  # the one line too many
    found["peak of cut"] = round(peak())
    timed(found, "report", lambda: write_report(folder))
    found["page MiB"] = round((folder / "report.html").stat().st_size / 2**20, 1)
    return found


def report(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A report over `--runs`, of ten arms, 30 epochs and 20 generations each."""
    found: dict[str, Any] = {"runs": options.runs, "arms": options.arms, "start": round(resident())}
    methods = ["sgd", "sgd-all", "mutation", "openai-es", "snes"]
    arms = {f"arm-{i}" if i > 1 else methods[i]: methods[i % 5] for i in range(options.arms)}
    seeds = range(options.runs // options.arms)
    write_results(folder, arms, seeds)
    with (folder / "history.jsonl").open("w") as file:
        for seed in seeds:
            for arm in arms:
                for epoch in range(30):
                    where = {"arm": arm, "seed": seed, "epoch": epoch}
                    spent = {"sample_forwards": 10**4 * (epoch + 1), "seconds": float(epoch)}
                    level = {"accuracy": 0.9 - 0.5 / (epoch + 1), "loss": 1 / (epoch + 1)}
                    lines = [{"kind": "epoch", **where, "train": level, "fitness": level, **spent}]
                    if epoch >= 26:
                        scores = {"scores": [0.5 + 0.01 * i for i in range(8)], "parent": 0.5}
                        scores |= {"candidate": 0.55, "accepted": True, "failed": 0}
                        lines += [
                            {"kind": "generation", **where, "generation": g, **scores, **spent}
                            for g in range(5)
                        ]
                    file.writelines(json.dumps(line) + "\n" for line in lines)
    found["file MiB"] = round((folder / "history.jsonl").stat().st_size / 2**20)
    timed(found, "report", lambda: write_report(folder))
    found["page MiB"] = round((folder / "report.html").stat().st_size / 2**20, 1)
    return found


def soak(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evolve on digits, a history on disk and a checkpoint now and then."""
    torch.set_num_threads(1)
    data = load_data("digits")
    images, targets = data.normalise(data.inputs), data.targets
    model = build_model("small-cnn", channels=1, classes=10, image_size=8, seed=0)
    optimizer = evostep.Evolved(
        torch.optim.SGD(model.named_parameters(), lr=0.01, momentum=0.9),
        evostep.OpenAIES(sigma=0.02, lr=0.004, population=8),
    )
    fitness = evostep.Fitness(model, [(images[:128], targets[:128])], "accuracy")
    told, samples, began, generations = History(folder / "history.jsonl"), [], time.monotonic(), 0
    order = torch.Generator().manual_seed(0)
    while time.monotonic() - began < 60 * options.minutes:
        rows = torch.randint(128, len(images), (64,), generator=order)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[rows]), targets[rows]).backward()
        optimizer.step()
        for record in optimizer.evolve(fitness, generations=10):
            told.append({"generation": record.generation, "scores": record.scores})
        optimizer.history.clear()
        generations += 10
        if generations % 100 == 0:
            torch.save(optimizer.state_dict(), folder / "last.pt")
            optimizer.load_state_dict(torch.load(folder / "last.pt", weights_only=True))
            handles = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            samples.append([round(time.monotonic() - began), generations, resident(), handles])
            print(f"{samples[-1][0]:>6} s {generations:>8,} generations {resident():7.1f} MiB "
                  f"{handles} handles", flush=True)  # fmt: skip
    settled = samples[len(samples) // 5 :]  # what is allocated once is there by then
    memory, handles = [row[2] for row in settled], [row[3] for row in settled]
    return {
        "generations": generations,
        "minutes": options.minutes,
        "growth": round(max(memory) - memory[0], 1),
        "handles": max(handles) - handles[0],
        "first and last MiB": [round(memory[0], 1), round(memory[-1], 1)],
        "samples": len(samples),
    }


PARTS = {"history": history, "report": report, "soak": soak}


def main() -> int:
    """Run a part, and tell what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--generations", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--arms", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = PARTS[options.part](Path(folder), options)
    found["peak"] = round(peak())
    found["date"] = datetime.date.today().isoformat()
    found |= {"torch": torch.__version__, "python": platform.python_version()}
    passed = {k: most for k, most in BOUNDS[options.part].items() if found[k] > most}
    print(json.dumps(found, indent=1))
    for name, most in passed.items():
        print(f"{name} {found[name]} is more than {most}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return bool(passed)


if __name__ == "__main__":
    sys.exit(main())
