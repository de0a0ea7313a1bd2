"""What racing saves, and how often it decides as full scoring does, by how much mutations change.

Networks are trained on real images. For a few sizes of mutation, children are scored in full on
5,000 other images, example by example; then races are run over these tables, which takes no
network. So each child's scores are real, and many generations cost little. Where `--children` is
below 16 x `--generations`, the 16 children of a generation are drawn anew from them; otherwise each
child is in one generation. `--wall` times real generations instead, one row at a time, full scoring
and racing in turn. Rows are written to the file as they are done, and the same command goes on
where it stopped.

    python benchmarks/racing.py --json racing.json
    python benchmarks/racing.py --json racing.json --model small-cnn --children 128
    python benchmarks/racing.py --json racing.json --model small-cnn --wall 3
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evostep
from evostep.engines.base import Engine, Session
from evostep.engines.inplace import InPlace
from evostep.engines.racing import Racing
from evostep.engines.racing.session import margin
from evostep.genome.point import Tensors
from evostep.genome.slots import slots_of_module
from evostep.lab.data.images import load_data
from evostep.lab.models import build_model
from evostep.scoring.evaluator import Competition, Evaluator, Round
from evostep.scoring.metrics import accuracy
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace

CHILDREN = 16
BATCH = 500
METRICS = ("accuracy", "neg-loss")


def train(options: argparse.Namespace, seed: int) -> tuple[nn.Module, Tensor, Tensor, str]:
    """Train a network; give it, and the images and classes that it did not see."""
    data = load_data(options.data, options.data_dir)
    order = torch.randperm(len(data.inputs), generator=torch.Generator().manual_seed(seed))
    inputs, targets = data.normalise(data.inputs[order]), data.targets[order]
    channels, size = inputs.shape[1], inputs.shape[-1]
    model = build_model(
        options.model, channels=channels, classes=len(data.classes), image_size=size, seed=seed
    )
    lr, steps = 0.05, options.train // 128
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, options.epochs * steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        shuffled = torch.randperm(options.train, generator=generator)
        for rows in shuffled[: steps * 128].split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    rows = slice(options.train, options.train + options.examples)
    return model.eval(), inputs[rows], targets[rows], data.title


@dataclass
class Tables:
    """What children score on each example.

    Attributes:
        logits: of the parent, (n, classes).
        targets: (n,).
        scores: metric -> (children, n).
        changed: the mean share of the predictions that a child changes.
        doubtful: the share of these changes in the tenth of the examples with least margin.
    """

    logits: Tensor
    targets: Tensor
    scores: dict[str, Tensor]
    changed: float
    doubtful: float


@torch.no_grad()
def score_children(
    model: nn.Module, inputs: Tensor, targets: Tensor, sigma: float, count: int, seed: int
) -> Tables:
    """Score so many mutations in full."""
    slots = slots_of_module(model)
    genome = evostep.AllWeights().open(slots)
    workspace = Workspace(evostep.AllWeights(), genome, slots.tensors)
    strategy = evostep.RandomMutation(sigma, population=count)

    def outputs() -> Tensor:
        return torch.cat([model(batch) for batch in inputs.split(BATCH)])

    before = outputs()
    scores: dict[str, list[Tensor]] = {metric: [] for metric in METRICS}
    changes = torch.zeros(len(targets))
    try:
        for i in range(count):
            workspace.write(strategy.member(genome, {}, 0, i, seed))
            after = outputs()
            scores["accuracy"].append(accuracy(after, targets).bool())
            scores["neg-loss"].append(-F.cross_entropy(after, targets, reduction="none"))
            changes += after.argmax(1) != before.argmax(1)
    finally:
        workspace.restore()
    distance = margin(before)
    assert distance is not None
    least = changes[distance.argsort()[: len(targets) // 10]].sum()
    return Tables(
        before,
        targets,
        {metric: torch.stack(rows) for metric, rows in scores.items()},
        float(changes.mean()) / count,
        float(least / changes.sum()),
    )


class Lookup(nn.Module):
    """Gives the logits of examples by their numbers."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.register_buffer("logits", logits)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return (n, classes)."""
        logits: Tensor = self.logits
        return logits[numbers]


class FromTable(Engine):
    """Scores members, which are rows of a table, on examples, which are columns of it."""

    name = "table"

    def __init__(self, table: Tensor, parent: Tensor) -> None:
        self.table, self.parent = table, parent

    def open(self, workspace: Workspace, evaluator: Evaluator) -> LookingUp:
        """Start to work for one phase."""
        return LookingUp(self, workspace, evaluator)


class LookingUp(Session[FromTable]):
    """Scores members by looking them up."""

    def score(self, round: Round, members: Sequence[Any]) -> list[Scores]:
        """Look the scores up."""
        assert round.examples is not None
        numbers = torch.cat([inputs for inputs, _ in round.examples])
        table, parent = self.engine.table, self.engine.parent
        rows = [parent if isinstance(member, Tensors) else table[member] for member in members]
        found = [row[numbers].double() for row in rows]
        return [Scores(float(values.mean()), values) for values in found]


def decide(scores: Sequence[float], parent: float, beats_parent: bool) -> int | None:
    """Return the member that becomes the center: the first of the best; None: the parent stays."""
    best = max(range(len(scores)), key=lambda i: scores[i])
    return best if not beats_parent or scores[best] > parent else None


def race(tables: Tables, metric: str, beats_parent: bool, count: int, seed: int) -> dict[str, Any]:
    """Race so many generations; give how much of full scoring they took, and what was decided."""
    n = len(tables.targets)
    model = Lookup(tables.logits)
    numbers = torch.arange(n).split(BATCH)
    batches = [(part, tables.targets[part]) for part in numbers]
    evaluator = Evaluator(evostep.Fitness(model, batches, metric))
    slots = slots_of_module(model)
    space = evostep.AllWeights()
    workspace = Workspace(space, space.open(slots), slots.tensors)
    table = tables.scores[metric]
    parent = evaluator.fitness.score(evaluator.fitness.examples()).per_example  # type: ignore[union-attr]
    assert parent is not None
    racing = Racing(over=FromTable(table, parent)).open(workspace, evaluator)
    fresh = len(table) >= count * CHILDREN
    generator = torch.Generator().manual_seed(seed)
    shares: list[float] = []
    same = stays = 0
    for generation in range(count):
        members = torch.randperm(len(table), generator=generator)[:CHILDREN].tolist()
        if fresh:
            members = list(range(generation * CHILDREN, (generation + 1) * CHILDREN))
        round = evaluator.round(seed, generation, Competition(beats_parent))
        center = racing.parent(round, members)  # type: ignore[arg-type]
        found = racing.score(replace(round, parent=center), members)  # type: ignore[arg-type]
        full = table[members].double().mean(1).tolist()
        raced = [one.value for one in found]
        wanted = decide(full, center.value, beats_parent)
        same += decide(raced, center.value, beats_parent) == wanted
        stays += wanted is None
        seen = sum(n if one.seen is None else one.seen for one in found)
        shares.append((n + seen) / (n * (1 + CHILDREN)))
    return {"same": same, "stays": stays, "shares": shares, "fresh": fresh}


def time_generations(
    model: nn.Module, inputs: Tensor, targets: Tensor, sigma: float, metric: str, repeats: int
) -> dict[str, Any]:
    """Time real generations of full scoring and of racing in turn; the weights stay."""
    batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    fitness = evostep.Fitness(model, batches, metric)
    found: dict[str, list[Any]] = {"ratios": [], "shares": [], "full_s": [], "racing_s": []}
    same = 0
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for repeat in range(repeats):
        seconds, proposed, forwards = {}, {}, {}
        engines: list[Engine] = [InPlace(), Racing()]
        for engine in engines if repeat % 2 else engines[::-1]:
            strategy = evostep.RandomMutation(sigma, population=CHILDREN)
            search = evostep.Evolution(model, strategy, seed=repeat, engine=engine)
            began = time.perf_counter()
            (record,) = search.evolve(fitness)
            seconds[engine.name] = time.perf_counter() - began
            forwards[engine.name] = record.sample_forwards
            best = max(range(CHILDREN), key=lambda i: record.scores[i])
            proposed[engine.name] = best if record.accepted else None
            model.load_state_dict(weights)
        same += proposed["inplace"] == proposed["racing"]
        found["ratios"].append(seconds["racing"] / seconds["inplace"])
        found["shares"].append(forwards["racing"] / forwards["inplace"])
        found["full_s"].append(seconds["inplace"])
        found["racing_s"].append(seconds["racing"])
    return {**found, "same": same, "repeats": repeats}


def summarise(values: Sequence[float]) -> str:
    """Return median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def add_races(rows: list[dict[str, Any]], options: argparse.Namespace, seed: int) -> None:
    """Add the races of one network."""
    model, inputs, targets, title = train(options, seed)
    batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    for share in options.shares:
        key = {"kind": "races", "model": options.model, "seed": seed, "share": share}
        if any(key.items() <= row.items() for row in rows):
            continue
        sigma = evostep.suggest_sigma(model, batches, share=share, draws=2).sigma
        count = options.children or CHILDREN * options.generations
        tables = score_children(model, inputs, targets, sigma, count, seed)
        value = float(accuracy(tables.logits, targets).mean())
        row = key | describe(options, title) | {"sigma": sigma, "children": count}
        row |= {"changed": tables.changed, "doubtful": tables.doubtful, "accuracy": value}
        row["races"] = {
            metric: {
                rule: race(tables, metric, beats, options.generations, seed)
                for rule, beats in (("improves", True), ("always", False))
            }
            for metric in METRICS
        }
        rows.append(row)
        write(rows, options)


def add_times(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Add the times of real generations of one network."""
    model, inputs, targets, title = train(options, 0)
    batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    for share in options.shares:
        key = {"kind": "times", "model": options.model, "share": share}
        if any(key.items() <= row.items() for row in rows):
            continue
        sigma = evostep.suggest_sigma(model, batches, share=share, draws=2).sigma
        timed = time_generations(model, inputs, targets, sigma, "accuracy", options.wall)
        rows.append(key | describe(options, title) | {"sigma": sigma} | timed)
        write(rows, options)


def describe(options: argparse.Namespace, title: str) -> dict[str, Any]:
    """Return the settings that a row depends on."""
    return {
        "data": title,
        "examples": options.examples,
        "generations": options.generations,
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def show(rows: list[dict[str, Any]]) -> None:
    """Print all rows; those of several networks together."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "races":
            groups.setdefault((row["model"], row["share"]), []).append(row)
    for (model, _), found in sorted(groups.items()):
        first = found[0]
        children = first["children"]
        per = "each in one generation" if children >= CHILDREN * first["generations"] else "reused"
        print(
            f"\n{first['data']}, {first['examples']:,} examples, {model} x {len(found)} "
            f"(accuracy {summarise([row['accuracy'] for row in found])}), {CHILDREN} children of "
            f"{children} a network, {per}\n"
            f"  changed {summarise([row['changed'] for row in found])}, sigma "
            f"{summarise([row['sigma'] for row in found])}, of the changes "
            f"{summarise([row['doubtful'] for row in found])} in the tenth of least margin"
        )
        for metric in METRICS:
            for rule in ("improves", "always"):
                races = [row["races"][metric][rule] for row in found]
                shares = [share for one in races for share in one["shares"]]
                same, stays = (sum(one[key] for one in races) for key in ("same", "stays"))
                print(
                    f"  {metric:9} {rule:9} sample-forwards {summarise(shares)} of full scoring; "
                    f"same decision {same} of {len(shares)}; the parent stays in {stays}"
                )
    for row in rows:
        if row["kind"] == "times":
            print(
                f"\n{row['data']}, {row['model']}, {row['share']:.0%} change, {row['threads']} "
                f"threads: time {summarise(row['ratios'])} of full scoring "
                f"({statistics.median(row['full_s']):.3g} s), sample-forwards "
                f"{summarise(row['shares'])}; same decision {row['same']} of {row['repeats']}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="cifar10 or fashion-mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="mlp", help="mlp, small-cnn, ...: see evostep.lab")
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--examples", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--generations", type=int, default=200, help="of each network")
    parser.add_argument("--children", type=int, help="scored; default: 16 for each generation")
    parser.add_argument("--wall", type=int, default=0, help="repeats of timed generations")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())["rows"]
    if options.wall:
        add_times(rows, options)
    else:
        for seed in options.seeds:
            add_races(rows, options, seed)
    show(rows)


if __name__ == "__main__":
    main()
