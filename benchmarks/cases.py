"""The cases of engines.py: what is measured, against what, and what it should reach.

A case has sides, each a process of its own, and figures, each computed from the sides of one
repeat. This file does not import torch: engines.py must stay small, since on Linux a process counts
the memory that its parent held when it began as a peak of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

Found = Mapping[str, Mapping[str, Any]]  # side -> what its process measured


@dataclass(frozen=True)
class Side:
    """One thing to measure.

    Attributes:
        engine: its name; "inference": no generation, plain inference alone.
        population: members in a generation, the parent not counted.
        noise: "normal", or "lowrank" for `LowRank(1)`.
        only: patterns of the weights that move; none: all.
        autocast: whether to score under bfloat16.
        generations: timed in one process, the median of which counts.
        passes: plain inferences beside each generation, half before it and half after it.
        copies: how many times a plain inference has each example, all in one batch.
    """

    engine: str
    population: int
    noise: str = "normal"
    only: tuple[str, ...] = ()
    autocast: bool = False
    generations: int = 1
    passes: int = 0
    copies: int = 1


@dataclass(frozen=True)
class Figure:
    """A number made of the sides of one repeat.

    Attributes:
        title: what it is.
        of: gives it, from what the sides measured.
        sides: that it needs.
        least: it should be so much or more.
        most: it should be so much or less.
    """

    title: str
    of: Callable[[Found], float]
    sides: tuple[str, ...]
    least: float | None = None
    most: float | None = None

    def reached(self, value: float) -> bool | None:
        """Return whether a value is within the target; None where there is no target."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


@dataclass(frozen=True)
class Case:
    """One comparison; `repeats` takes the place of a larger number of repeats."""

    title: str
    task: str  # resnet18, mlp, mlp-deep or transformer
    examples: int
    batch: int
    sides: Mapping[str, Side]
    figures: tuple[Figure, ...]
    repeats: int | None = None
    note: str = ""

    def settings(self) -> dict[str, Any]:
        """Return all that its numbers depend on, but for the machine."""
        sides = {name: asdict(side) for name, side in self.sides.items()}
        for side in sides.values():
            side["only"] = list(side["only"])  # as JSON has it
        return {"task": self.task, "examples": self.examples, "batch": self.batch, "sides": sides}

    def at_most(self, population: int | None) -> Case:
        """Return the case with smaller populations, to try it out."""
        if population is None:
            return self
        few = {
            name: replace(
                side,
                population=min(side.population, population),
                copies=side.copies if side.copies == 1 else min(side.copies, population + 1),
            )
            for name, side in self.sides.items()
        }
        return replace(self, sides=few, title=f"{self.title}; here at most {population} members")


def to_plain(name: str, most: float | None = None) -> Figure:
    """Compare a generation with plain inference for each of its networks, the parent included."""

    def of(found: Found) -> float:
        side = found[name]
        return float(side["seconds"] / (side["networks"] * side["plain"]))

    return Figure(f"{name} / (networks x plain inference)", of, (name,), most=most)


def faster(slow: str, fast: str, least: float | None = None) -> Figure:
    """Compare the time for each network of two engines."""

    def of(found: Found) -> float:
        a, b = found[slow], found[fast]
        return float((a["seconds"] / a["networks"]) / (b["seconds"] / b["networks"]))

    return Figure(f"{slow} / {fast}, for each network", of, (slow, fast), least=least)


def _to_one_batch(name: str, most: float) -> Figure:
    title = f"{name} / plain inference of as many inputs in one batch"
    return Figure(title, lambda f: f[name]["seconds"] / f[name]["plain"], (name,), most=most)


def _split(name: str) -> tuple[Figure, ...]:
    """Tell where a member's time goes: into its noise, its forward, and its share of the step."""

    def rest(found: Found) -> float:
        side = found[name]
        spent = side["seconds"] - side["write"] - side["networks"] * side["plain"]
        return float(1e3 * spent / side["population"])

    return (
        Figure(
            f"{name}: ms to write a member (noise)",
            lambda found: 1e3 * found[name]["write"] / found[name]["population"],
            (name,),
        ),
        Figure(f"{name}: ms of inference", lambda found: 1e3 * found[name]["plain"], (name,)),
        Figure(f"{name}: ms for the rest, the step above all", rest, (name,)),
    )


def _inplace(population: int, repeats: int | None = None) -> Case:
    return Case(
        f"resnet18, 1,000 examples, population {population}",
        "resnet18",
        examples=1000,
        batch=500,
        sides={"inplace": Side("inplace", population, passes=8)},
        figures=(to_plain("inplace", most=1.06),),
        repeats=repeats,
    )


def _memory() -> Case:
    def above(name: str) -> Figure:
        return Figure(
            f"(peak of {name} - peak of inference) / bytes of the parameters",
            lambda found: (
                (found[name]["peak_mb"] - found["inference"]["peak_mb"])
                / found[name]["parameters_mb"]
            ),
            (name, "inference"),
            most=2.0,
        )

    return Case(
        "peak memory of the process: resnet18, 500 examples in one batch",
        "resnet18",
        examples=500,
        batch=500,
        sides={
            "inference": Side("inference", 2, passes=8),
            "generation-8": Side("inplace", 8),
            "generation-64": Side("inplace", 64),
        },
        figures=(
            Figure(
                "peak of generation-64 / peak of generation-8",
                lambda found: found["generation-64"]["peak_mb"] / found["generation-8"]["peak_mb"],
                ("generation-64", "generation-8"),
                least=0.95,
                most=1.05,
            ),
            above("generation-8"),
            above("generation-64"),
        ),
        repeats=3,
    )


def _vmap(task: str, layers: str) -> Case:
    sides = {engine: Side(engine, 256, generations=5, passes=256) for engine in ("inplace", "vmap")}
    return Case(
        f"mlp {layers}, 300 examples, population 256",
        task,
        examples=300,
        batch=300,
        sides=sides,
        figures=(faster("inplace", "vmap", 2.0), to_plain("inplace"), to_plain("vmap")),
    )


def _lowrank(task: str, examples: int, most: float) -> Case:
    return Case(
        f"{task}, {examples} examples for each member, population 64; dense noise in place",
        task,
        examples=examples,
        batch=examples,
        sides={
            "inplace": Side("inplace", 64, passes=32),
            "lowrank": Side("lowrank", 64, noise="lowrank", passes=4, copies=65),
        },
        figures=(
            faster("inplace", "lowrank", 3.0),
            _to_one_batch("lowrank", most),
            *_split("inplace"),
        ),
    )


def _prefix(only: tuple[str, ...], least: float, full: bool) -> Case:
    members = 64 if full else 16
    return Case(
        f"resnet18, 1,000 examples, Only({', '.join(map(repr, only))}), population 64",
        "resnet18",
        examples=1000,
        batch=500,
        sides={
            "inplace": Side("inplace", members, only=only),
            "prefix": Side("prefix", 64, only=only, generations=3 if least > 10 else 1),
        },
        figures=(_scaled("inplace", "prefix", least),),
        note="" if full else "in place scores fewer members: its time is scaled (--full: all)",
    )


def _scaled(slow: str, fast: str, least: float) -> Figure:
    """Compare two generations, the slow one's time scaled to the members of the fast one."""

    def of(found: Found) -> float:
        a, b = found[slow], found[fast]
        return float(a["seconds"] * b["population"] / a["population"] / b["seconds"])

    return Figure(f"{slow} / {fast}", of, (slow, fast), least=least)


def _autocast() -> Case:
    return Case(
        "resnet18, 1,000 examples, population 8, in place: bfloat16 by autocast",
        "resnet18",
        examples=1000,
        batch=500,
        sides={
            "float32": Side("inplace", 8),
            "bfloat16": Side("inplace", 8, autocast=True),
        },
        figures=(faster("float32", "bfloat16"),),
        repeats=1,
        note="a CPU without bfloat16 units is many times slower",
    )


def make_cases(full: bool) -> dict[str, Case]:
    """Return all cases by name.

    Args:
        full: whether the slow side of the prefix cases scores all 64 members.
    """
    return {
        "inplace-resnet18-16": _inplace(16),
        "inplace-resnet18-64": _inplace(64, repeats=3),
        "memory-resnet18": _memory(),
        "vmap-mlp": _vmap("mlp", "64-32-10"),
        "vmap-mlp-deep": _vmap("mlp-deep", "64-64-64-10"),
        "lowrank-resnet18-8": _lowrank("resnet18", 8, 1.5),
        "lowrank-transformer-8": _lowrank("transformer", 8, 1.25),
        "lowrank-transformer-32": _lowrank("transformer", 32, 1.25),
        "prefix-head": _prefix(("fc.*",), 30.0, full),
        "prefix-block": _prefix(("layer4.*", "fc.*"), 2.5, full),
        "autocast-bf16": _autocast(),
    }
