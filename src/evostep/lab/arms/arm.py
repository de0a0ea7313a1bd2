"""Arms: what is compared. An arm is a method, a label, and settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from evostep.acceptance import Rule
from evostep.schedule import Alternate
from evostep.spaces.base import Space
from evostep.spaces.span import Span
from evostep.strategies.base import Strategy


@dataclass(frozen=True)
class Training:
    """How gradients are used: what decides which arms can share a trunk."""

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    batch: int
    augment: str
    all_data: bool = False
    gradient_noise: float = 0.0

    @property
    def key(self) -> str:
        """A readable name, the same for equal settings."""
        parts = [self.optimizer, f"lr{_short(self.lr)}", f"m{_short(self.momentum)}"]
        parts += [f"b{self.batch}"]
        parts += [f"wd{_short(self.weight_decay)}"] if self.weight_decay else []
        parts += [self.augment] if self.augment != "none" else []
        parts += ["all-data"] if self.all_data else []
        parts += [f"noise{_short(self.gradient_noise)}"] if self.gradient_noise else []
        return "-".join(parts)


@dataclass(frozen=True)
class PopulationSizes:
    """Sizes of ESGD's population, and sigma_0 of its noise in units of the weights."""

    individuals: int = 4
    offspring: int = 8
    parents: int = 2
    elite: int = 2
    sigma: float = 0.01


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison.

    Attributes:
        label: unique within the comparison.
        method: its name among `METHODS`.
        procedure: how it trains: see `evostep.lab.arms.procedures`.
        training: how gradients are used.
        strategy: how it evolves; None where it does not.
        schedule: when it evolves.
        accept: when a new center replaces its parent.
        space: which weights evolve.
        at_end: whether it evolves once only, where its budget ends.
        epochs: how many it has where there is no budget.
        population: sizes of ESGD's population.
    """

    label: str
    method: str
    procedure: str
    training: Training
    strategy: Strategy | None
    schedule: Alternate
    accept: Rule
    space: Space
    at_end: bool
    epochs: int
    population: PopulationSizes = PopulationSizes()

    @property
    def mixes(self) -> bool:
        """Whether it mixes checkpoints, so that BatchNorm statistics have to be estimated again."""
        return isinstance(self.space, Span) and self.strategy is not None

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the arm's result, as plain data."""
        described: dict[str, Any] = {
            "label": self.label,
            "method": self.method,
            "training": dataclasses.asdict(self.training),
            "epochs": self.epochs,
        }
        if self.procedure == "population":
            described["population"] = dataclasses.asdict(self.population)
            described["schedule"] = dataclasses.asdict(self.schedule)
        if self.strategy is not None:
            fields = dataclasses.fields(self.strategy)  # type: ignore[arg-type]
            values = {f.name: getattr(self.strategy, f.name) for f in fields}
            described["strategy"] = {
                "name": type(self.strategy).__name__,
                **{name: _plain(value) for name, value in values.items()},
            }
            described["at_end"] = self.at_end
            described["schedule"] = dataclasses.asdict(self.schedule)
            described["accept"] = repr(self.accept)
            described["space"] = repr(self.space)
        return described


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _short(number: float) -> str:
    """The number as text, as short as can be without becoming another one."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
