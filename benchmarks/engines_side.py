"""Measures one side of a case of cases.py, in this process: time, plain inference, peak memory.

engines.py starts a process for each, and growth.py takes the models from here.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cases import Case, Side
from torch import Tensor, nn

import evostep
from evostep.engines.auto import Auto
from evostep.spaces.workspace import Workspace

Batch = tuple[Tensor, Tensor]  # inputs, targets
_TOKENS, _LENGTH, _CLASSES = 1000, 64, 10


class Encoder(nn.Module):
    """A transformer encoder on tokens, the mean over them, a linear head."""

    def __init__(self, width: int = 256, layers: int = 4, tokens: int = _TOKENS) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, nhead=width // 64, dim_feedforward=4 * width, batch_first=True, dropout=0.0
        )
        self.embedding = nn.Embedding(tokens, width)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, _CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (b, 10) for tokens (b, 64)."""
        hidden = self.encoder(self.embedding(tokens))  # (b, 64, width)
        logits: Tensor = self.head(hidden.mean(dim=1))
        return logits


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def make_task(task: str, examples: int, batch: int) -> tuple[nn.Module, list[Batch]]:
    """Return the model in eval mode, and random examples in batches, by a fixed seed."""
    torch.manual_seed(0)
    shape: tuple[int, ...] = (64,)
    model: nn.Module
    if task == "resnet18":
        from torchvision.models import resnet18

        model, shape = resnet18(num_classes=_CLASSES), (3, 32, 32)
    elif task.startswith("transformer"):
        large = task == "transformer-100m"
        model = Encoder(width=768, layers=12, tokens=20_000) if large else Encoder()
        shape = (_LENGTH,)
    else:
        model = mlp(64, 64, 64, _CLASSES) if task == "mlp-deep" else mlp(64, 32, _CLASSES)
    batches = []
    for _ in range(examples // batch):
        size = (batch, *shape)
        inputs = torch.randint(_TOKENS, size) if "transformer" in task else torch.randn(size)
        batches.append((inputs, torch.randint(_CLASSES, (batch,))))
    return model.eval(), batches


def make_generation(
    model: nn.Module, batches: list[Batch], side: Side, population: int | None = None
) -> Callable[[], None]:
    """Return what runs one generation, as a user would have it."""
    fitness = evostep.Fitness(
        model, batches, "neg-loss", autocast=torch.bfloat16 if side.autocast else None
    )
    population = side.population if population is None else population
    strategy = evostep.OpenAIES(
        sigma=0.02,
        lr=0.002,
        population=population,
        noise=evostep.LowRank(1) if side.noise == "lowrank" else "normal",
    )
    evolution = evostep.Evolution(
        model,
        strategy,
        space=evostep.Only(*side.only) if side.only else evostep.AllWeights(),
        accept=evostep.Always(),
        engine=side.engine,
    )
    examples = sum(len(targets) for _, targets in batches)

    def generation() -> None:
        with warnings.catch_warnings():  # an engine that gives up would time another one
            warnings.filterwarnings("error", message="engine .* cannot score")
            (record,) = evolution.evolve(fitness)
        assert record.sample_forwards == (population + 1) * examples
        assert record.accepted, "the center stayed where it was: no step was timed"

    return generation


@torch.no_grad()
def infer(model: nn.Module, batches: list[Batch], passes: int) -> float:
    """Run plain inference of one network; give the seconds that all passes took."""
    began = time.perf_counter()
    for _ in range(passes):
        for inputs, _ in batches:
            model(inputs)
    return time.perf_counter() - began


def measure(case: Case, side: Side, threads: int) -> dict[str, Any]:
    """Measure a side; give `{"missing": reason}` where its engine cannot be had."""
    torch.set_num_threads(threads)
    if side.engine != "inference":
        try:
            Auto.of(side.engine)
        except ValueError as error:
            return {"missing": str(error)}
    model, batches = make_task(case.task, case.examples, case.batch)
    plain = [(x.repeat(side.copies, *[1] * (x.dim() - 1)), y) for x, y in batches]
    if side.copies > 1:
        assert len(batches) == 1, "copies are for one batch"
    infer(model, plain, 1)
    found: dict[str, Any] = {"population": side.population, "networks": side.population + 1}
    if side.engine == "inference":
        found["plain"] = infer(model, batches, side.passes) / side.passes
        found["seconds"] = found["networks"] * found["plain"]
    else:
        try:
            found |= _time_generations(model, batches, plain, side)
        except UserWarning as warning:
            return {"missing": str(warning)}
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return found | {"parameters_mb": parameters / 1e6, "peak_mb": _peak_mb()}


def _time_generations(
    model: nn.Module, batches: list[Batch], plain: list[Batch], side: Side
) -> dict[str, Any]:
    generation = make_generation(model, batches, side)
    if side.engine == "inplace":  # two members warm up as much as many
        make_generation(model, batches, side, population=2)()
    else:
        generation()  # the engine is verified on its first use
    seconds, plains, writes = [], [], []
    half = side.passes // 2
    for _ in range(side.generations):
        beside = infer(model, plain, half)
        with _timed_writes() as written:
            began = time.perf_counter()
            generation()
            seconds.append(time.perf_counter() - began)
        beside += infer(model, plain, half)
        writes.append(sum(written))
        plains.append(beside / max(2 * half, 1))
    return {
        "seconds": statistics.median(seconds),
        "plain": statistics.median(plains),
        "write": statistics.median(writes),
        "generations": seconds,
    }


@contextmanager
def _timed_writes() -> Iterator[list[float]]:
    """Collect how long writing each member takes."""
    seconds: list[float] = []
    write = Workspace.write

    def timed(self: Workspace, *args: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        write(self, *args, **kwargs)
        seconds.append(time.perf_counter() - began)

    Workspace.write = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Workspace.write = write  # type: ignore[method-assign]


def _peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
