"""What evolution does today, case by case, to be held against what it does tomorrow.

Every strategy x space x engine for five generations on small models (BatchNorm, dropout, tied
weights), and what goes around them: rules, calibration, phases, resume, bare callables, ESGD, and
each method of `evostep compare`. Only public names and the command line are used, so that the same
script runs before and after the inside is rebuilt.

    python tests/behaviour/record.py --lab --bits before.json     # on one machine, before a change
    python tests/behaviour/record.py --lab --bits after.json --against before.json     # and after
    python tests/behaviour/record.py --every 11 --values tests/behaviour/values.json   # to 3e-6

`--lab` runs the command line, too. A record has checksums of all weights and buffers before and
after, the scores of every generation, the sample-forwards, verdicts and warnings.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import evostep

GENERATIONS = 5


class Mlp(nn.Module):
    """Dropout, BatchNorm on features, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU())
        self.drop = nn.Dropout(0.3)
        self.block2 = nn.Linear(10, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.block2(self.drop(self.block1(x)))))


class Cnn(nn.Module):
    """Convolutions with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 2)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x.view(-1, 1, 2, 3))))
        return self.head(self.conv2(x).flatten(1))


class Tied(nn.Module):
    """One weight in two places, a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(6, 8)
        self.one = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.two = nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(self.norm(torch.tanh(self.one(self.start(x)))))))


MODELS: dict[str, type[nn.Module]] = {"mlp": Mlp, "cnn": Cnn, "tied": Tied}

STRATEGIES: dict[str, Callable[[], Any]] = {
    "mutation": lambda: evostep.RandomMutation(0.1, 6),
    "mutation-uniform": lambda: evostep.RandomMutation(0.05, 6, scale="absolute", noise="uniform"),
    "mutation-safe": lambda: evostep.RandomMutation(0.05, 6, scale="safe"),
    "mutation-low-rank": lambda: evostep.RandomMutation(0.1, 6, noise=evostep.LowRank(1)),
    "openai-es": lambda: evostep.OpenAIES(0.1, 0.02, 6),
    "openai-es-z": lambda: evostep.OpenAIES(
        0.05, 0.01, 5, antithetic=False, shaping="z-score", scale="absolute", noise="uniform"
    ),
    "openai-es-adam": lambda: evostep.OpenAIES(0.1, 0.02, 6, optimizer="Adam"),
    "openai-es-low-rank": lambda: evostep.OpenAIES(0.1, 0.02, 6, noise=evostep.LowRank(1)),
    "snes": lambda: evostep.SNES(sigma=0.1, population=6),
    "cmaes": lambda: evostep.CMAES(sigma=0.1, population=6),
    "guided-es": lambda: evostep.GuidedES(sigma=0.1, lr=0.01, population=6),
    "random-search": lambda: evostep.RandomSearch(sigma=0.1, population=6),
}

SPACES: dict[str, Callable[[], Any]] = {
    "all": evostep.AllWeights,
    "head": lambda: evostep.Only("head"),
    "norm": lambda: evostep.Only("norm"),
    "buffers": lambda: evostep.Only("*", buffers=True),
    "span": lambda: evostep.Span(memory=3),
    "span-convex": lambda: evostep.Span(memory=3, groups="all", coefficients="convex"),
}

ENGINES = ("inplace", "vmap", "lowrank", "prefix", "racing", "auto")

RULES: dict[str, Callable[[], Any]] = {
    "improves": evostep.Improves,
    "always": evostep.Always,
    "t": lambda: evostep.PairedTest(0.5, "t", every="generation"),
    "ladder": evostep.Ladder,
    "phase": lambda: evostep.Improves(every="phase"),
    "permutation": lambda: evostep.PairedTest(0.9, "permutation", permutations=19),
}


def data(seed: int, n: int = 96) -> list[tuple[Tensor, Tensor]]:
    """Make batches of 40, 40 and the rest, labels that a small network can learn in part."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    y = (x[:, :3] + 0.5 * torch.randn(n, 3, generator=generator)).argmax(1)
    return list(zip(x.split(40), y.split(40), strict=True))


def make(name: str, steps: int = 12) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Make a model and train it a little, so that there are statistics, momenta and gradients."""
    torch.manual_seed(zlib.crc32(name.encode()))
    model = MODELS[name]()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    descend(model, optimizer, steps)
    return model, optimizer


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Take some gradient steps."""
    batches = itertools.cycle(data(7))
    for _ in range(steps):
        x, y = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def checksum(state: Any) -> str:
    """Hash every bit of a nest of tensors."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            bits = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(str(tuple(value.shape)).encode() + bytes(bits.tolist()))
        elif isinstance(value, dict):
            for key, item in value.items():
                digest.update(str(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()[:24]


def summary(model: nn.Module) -> list[float]:
    """Tell each tensor by its mean and its weighted sum: what is compared on other machines."""
    told = []
    for tensor in model.state_dict().values():
        flat = tensor.double().flatten()
        told += [float(flat.mean()), float(flat @ torch.linspace(-1, 1, len(flat)).double())]
    return told


def tell(records: list[Any]) -> list[dict[str, Any]]:
    """Take from each record what it says, the time apart."""
    told = []
    for record in records:
        one = {
            name: getattr(record, name)
            for name in ("generation", "scores", "parent", "candidate", "accepted", "failed")
        }
        one |= {"error": record.error, "forwards": record.sample_forwards, "opened": record.opened}
        if record.verdict is not None:
            names = ("generation", "generations", "parent", "candidate", "accepted", "error")
            one["verdict"] = {name: getattr(record.verdict, name) for name in names}
            one["verdict"]["forwards"] = record.verdict.sample_forwards
        told.append(one)
    return told


def observe(run: Callable[[], tuple[nn.Module, list[Any], Any]]) -> dict[str, Any]:
    """Run a case; tell what it did, warned of and raised."""
    torch.manual_seed(0)
    told: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model, records, more = run()
        except ValueError as error:
            told["raised"] = _neutral(f"{type(error).__name__}: {error}")
        else:
            told["bits"] = checksum([model.state_dict(), more])
            told["weights"] = summary(model)
            told["records"] = tell(records)
    told["stream"] = int(torch.randint(2**31, ()))  # the global stream is where it was
    told["warnings"] = [_neutral(str(w.message)) for w in caught]
    return told


def _neutral(text: str) -> str:
    """Leave out addresses in memory, and the one keyword that is to be renamed."""
    return re.sub(r"0x[0-9a-f]+", "0x", text).replace("children=", "population=")


def cases() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, list[Any], Any]]]]:
    """Name every case of evolution, with what runs it."""
    for model, strategy, space, engine in itertools.product(MODELS, STRATEGIES, SPACES, ENGINES):
        name = f"{model} {strategy} {space} {engine}"
        yield name, _grid_case(model, strategy, space, engine, zlib.crc32(name.encode()))
    for scenario in (bare, resumed, trained, drawn, train_mode, stopped, population, suggested):
        for model in MODELS:
            yield f"{model} {scenario.__name__}", (lambda s=scenario, m=model: s(m))
    for strategy, rule in itertools.product(("mutation", "openai-es", "random-search"), RULES):
        for fresh in (False, True):
            name = f"rules {strategy} {rule} {'fresh' if fresh else 'same'}"
            yield name, (lambda s=strategy, r=rule, f=fresh: ruled(s, r, f))


def _grid_case(
    model: str, strategy: str, space: str, engine: str, key: int
) -> Callable[[], tuple[nn.Module, list[Any], Any]]:
    def run() -> tuple[nn.Module, list[Any], Any]:
        net, optimizer = make(model)
        rules = list(RULES.values())
        metric = ("accuracy", "neg-loss", "macro-f1")[key // 7 % 3]
        rule = rules[key % (2 if metric == "macro-f1" else 5)]()
        calibration = data(11) if key // 21 % 5 == 0 and space != "buffers" else None
        fitness = evostep.Fitness(net, data(3), metric, calibration=calibration)
        wrapped = evostep.Evolved(
            optimizer,
            STRATEGIES[strategy](),
            space=SPACES[space](),
            accept=rule,
            model=net,
            momentum=("keep", "reset", 0.5)[key // 105 % 3],
            seed=key % 1000,
            engine=engine,
        )
        if space.startswith("span"):
            for _ in range(2):
                wrapped.remember()
                descend(net, wrapped, 2)
        records = wrapped.evolve(fitness, 3)
        descend(net, wrapped, 1)
        records = records + wrapped.evolve(fitness, GENERATIONS - 3)
        wrapped.zero_grad()
        moments = [wrapped.state[p].get("momentum_buffer") for p in net.parameters()]
        return net, records, [moments, fitness()]

    return run


def bare(model: str) -> tuple[nn.Module, list[Any], Any]:
    """A callable that scores the model as it stands, and fails now and then."""
    net, _ = make(model)
    batches, calls = data(3), []

    def fitness() -> float:
        calls.append(1)
        if len(calls) % 11 == 5:
            raise RuntimeError("it failed")
        if len(calls) % 13 == 7:
            return float("nan")
        with torch.no_grad():
            return -float(sum(nn.functional.cross_entropy(net(x), y) for x, y in batches))

    search = evostep.Evolution(net, evostep.OpenAIES(0.05, 0.01, 6), seed=3)
    records = search.evolve(fitness, GENERATIONS)
    return net, records, len(calls)


def resumed(model: str) -> tuple[nn.Module, list[Any], Any]:
    """Stopped in the middle of a phase, and gone on with in another process's objects."""
    net, _ = make(model)
    strategy = evostep.OpenAIES(0.1, 0.02, 6)
    one = evostep.Evolution(net, strategy, accept=evostep.Improves(every="phase"), seed=5)
    saved: list[Any] = []

    def save(record: Any) -> None:
        if record.generation == 1:
            saved.append(({k: v.clone() for k, v in net.state_dict().items()}, one.state_dict()))

    whole = one.evolve(evostep.Fitness(net, data(3), "neg-loss"), 4, on_generation=save)
    other, _ = make(model)
    other.load_state_dict(saved[0][0])
    again = evostep.Evolution(other, strategy, accept=evostep.Improves(every="phase"), seed=0)
    again.load_state_dict(saved[0][1])
    rest = again.evolve(evostep.Fitness(other, data(3), "neg-loss"), 2)
    return other, whole + rest, [net.state_dict(), again.sample_forwards, again.attempts]


# Adam's eps: by its own, a gradient of 1e-9 counts as much as one of 1, and so do the roundings
# that processors differ by.
_EVEN = 1e-3


def trained(model: str) -> tuple[nn.Module, list[Any], Any]:
    """Groups with sigmas of their own, a second fitness, evolution between steps."""
    net, _ = make(model)
    named = list(net.named_parameters())
    groups = [
        {"params": named[:2], "sigma": 0.0},
        {"params": named[2:4], "sigma": 0.3},
        {"params": named[4:]},
    ]
    wrapped = evostep.Evolved(
        torch.optim.Adam(groups, lr=0.01, eps=_EVEN),
        evostep.RandomMutation(0.1, 6),
        accept=evostep.PairedTest(0.5, "t"),
        momentum="reset",
        seed=9,
    )
    records: list[Any] = []
    for epoch in range(3):
        descend(net, wrapped, 3)
        fitness = evostep.Fitness(net, data(20 + epoch), "neg-loss")
        second = evostep.Fitness(net, data(30), "neg-loss")
        records += wrapped.evolve(fitness, 2, accept_on=second)
    moments = [wrapped.state[p].get("exp_avg") for p in net.parameters()]
    return net, records, [moments, wrapped.evolution.sample_forwards]


def drawn(model: str) -> tuple[nn.Module, list[Any], Any]:
    """Other batches in each generation; a metric of one's own that is to be small."""
    net, _ = make(model)

    def mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).double()

    fitness = evostep.Fitness(
        net, data(3), mistakes, higher_is_better=False, batches_per_generation=2
    )
    search = evostep.Evolution(net, evostep.SNES(sigma=0.1, population=6), seed=1)
    return net, search.evolve(fitness, GENERATIONS), fitness()


def train_mode(model: str) -> tuple[nn.Module, list[Any], Any]:
    """Dropout on and batch statistics, from the same random streams for everyone."""
    net, _ = make(model)
    fitness = evostep.Fitness(net, data(3), "neg-loss", mode="train", calibration=data(11))
    strategy = evostep.RandomMutation(0.1, 6, scale=evostep.Safe("rescale", 32, target=0.4))
    search = evostep.Evolution(net, strategy, seed=2)
    return net, search.evolve(fitness, GENERATIONS), search.sample_forwards


def stopped(model: str) -> tuple[nn.Module, list[Any], Any]:
    """Budgets, and a callback that ends a phase."""
    net, _ = make(model)
    fitness = evostep.Fitness(net, data(3), "accuracy")
    rule = evostep.Ladder()
    search = evostep.Evolution(net, evostep.OpenAIES(0.1, 0.02, 6), accept=rule, seed=4)
    records = search.evolve(fitness, 10, max_forwards=2500, accept_on=evostep.Fitness(net, data(8)))
    records += search.evolve(fitness, 10, on_generation=lambda record: record.generation == 4)
    return net, records, [search.generation, search.attempts, search.sample_forwards]


def population(model: str) -> tuple[nn.Module, list[Any], Any]:
    """ESGD: three models with optimizers of their own."""
    torch.manual_seed(1)
    species = (
        evostep.Species(torch.optim.SGD, lr=(0.03, 0.3, "log"), momentum=(0.0, 0.9)),
        evostep.Species(torch.optim.Adam, lr=(0.003, 0.03, "log"), eps=(_EVEN, 2 * _EVEN)),
    )
    nets = [make(model, steps=i)[0] for i in range(3)]
    fitness = evostep.Fitness(nets[0], data(3), "neg-loss")
    esgd = evostep.ESGD(
        [(net, species[i % 2]) for i, net in enumerate(nets)],
        fitness,
        offspring=4,
        parents=2,
        elite=2,
        seed=6,
    )

    def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        descend(net, optimizer, 3)
        return 120

    told = []
    for _ in range(3):
        esgd.descend(train)
        for record in esgd.evolve(2):
            told.append([record.generation, record.scores, record.accepted, record.sample_forwards])
    states = [individual.model.state_dict() for individual in esgd.individuals]
    return esgd.best().model, [], [states, told, esgd.sample_forwards]


def suggested(model: str) -> tuple[nn.Module, list[Any], Any]:
    """What `suggest_sigma` says, as text."""
    net, _ = make(model)
    return net, [], str(evostep.suggest_sigma(net, data(3)))


def ruled(strategy: str, rule: str, fresh: bool) -> tuple[nn.Module, list[Any], Any]:
    """Every rule, with and without examples that selection has not seen."""
    net, _ = make("mlp")
    search = evostep.Evolution(net, STRATEGIES[strategy](), accept=RULES[rule](), seed=8)
    fitness = evostep.Fitness(net, data(3), "accuracy", calibration=data(11))
    second = evostep.Fitness(net, data(8), "accuracy") if fresh else None
    records = search.evolve(fitness, 3, accept_on=second)
    records += search.evolve(fitness, 2, accept_on=second)
    return net, records, [search.attempts, search.sample_forwards]


def lab() -> dict[str, Any]:
    """Run every method by the command line, in small; tell results and history, times apart."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [str(Path(sys.executable).parent / "evostep")]
        listed = subprocess.run([*command, "methods"], capture_output=True, text=True, check=True)
        methods = [line.split(":")[0] for line in listed.stdout.splitlines() if line[:1].isalpha()]
        command += ["compare", "--train-size", "120", "--epochs", "5", "--evolve-from", "2"]
        command += ["--generations", "2", "--seeds", "1", "--threads", "1", "--out", str(out)]
        subprocess.run([*command, "--arms", ",".join(methods)], capture_output=True, check=True)
        results = json.loads((out / "results.json").read_text())
        history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    told: dict[str, Any] = {}
    for run in results["runs"]:
        lines = [
            {key: value for key, value in line.items() if key != "seconds"}
            for line in history
            if line["arm"] == run["arm"]
        ]
        kept = {key: value for key, value in run.items() if "seconds" not in key}
        told[f"lab {run['arm']}"] = {"run": kept, "history": lines}
    trunk = [line for line in history if line["arm"] not in methods]
    told["lab trunks"] = [{k: v for k, v in line.items() if k != "seconds"} for line in trunk]
    return told


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Name every place where two records differ at all; NaN equals NaN."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from differences(before.get(key), after.get(key), f"{where}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{where}[{i}]")
    elif before != after and not (before != before and after != after):
        yield f"{where}: {str(before)[:150]} -> {str(after)[:150]}"


def main() -> int:
    """Write records, or hold them against earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=Path, help="write all that is recorded")
    parser.add_argument("--values", type=Path, help="write what the suite holds to 1e-6")
    parser.add_argument("--against", type=Path, help="records made before")
    parser.add_argument(
        "--lab", action="store_true", help="run the methods of the command line, too"
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--every", type=int, default=1, help="one case of so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [(name, run) for name, run in cases() if options.only in name][:: options.every]
    told = {name: observe(run) for name, run in wanted}
    if options.values:
        rounded = {name: in_short(record) for name, record in told.items()}
        options.values.write_text(json.dumps(rounded, separators=(",", ":")).replace("},", "},\n"))
    if options.lab:
        told |= lab()
    told = json.loads(json.dumps(told))
    if options.bits:
        options.bits.write_text(json.dumps(told))
    if options.against:
        before = json.loads(options.against.read_text())
        before = {name: record for name, record in before.items() if name in told}
        found = list(differences(before, told))
        print("\n".join(found[:60]))
        print(f"{len(told)} cases, {len(found)} differences")
        return bool(found)
    print(f"{len(told)} cases")
    return 0


def in_short(record: dict[str, Any]) -> dict[str, Any]:
    """Reduce a record to what a case can be told by on another machine: a few numbers."""
    if "raised" in record:
        return {"raised": record["raised"].split(":")[0]}
    records = record["records"]
    return {
        "weights": [float(f"{sum(record['weights']):.9g}"), float(f"{record['weights'][0]:.9g}")],
        "scores": [float(f"{sum(s for s in r['scores'] if s == s):.9g}") for r in records],
        "accepted": [r["accepted"] for r in records],
        "forwards": sum(r["forwards"] for r in records),
    }


if __name__ == "__main__":
    sys.exit(main())
