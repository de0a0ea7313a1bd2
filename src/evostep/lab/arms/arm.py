"""Arms: what is compared. An arm is a method, a label, and settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from evostep.acceptance import Rule
from evostep.schedule import Alternate
from evostep.spaces.base import Space
from evostep.spaces.span import Span
from evostep.strategies.base import Strategy


@dataclass(frozen=True)
class Training:
    """How gradients are used: what decides which arms can share a trunk.

    Attributes:
        optimizer: the base optimizer: sgd, adam or adamw.
        lr: its learning rate, at the beginning where a schedule moves it.
        momentum: of SGD; the first beta of Adam.
        weight_decay: of the base optimizer.
        batch: examples in a step.
        augment: how training images are varied.
        all_data: whether gradients see the fitness and accept examples, too.
        gradient_noise: eta of the noise on gradients; 0: none.
        schedule: how the learning rate goes: constant or cosine.
        sharpness: rho of SAM, in units of the weights; 0: plain steps.
        only: which weights gradients move, as ``--space`` says it; empty: all.
        span: where the schedule begins and ends, in sample-forwards where there is a budget, and
            else in epochs; the plan knows it (`evostep.lab.arms.budget.settled`).
    """

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    batch: int
    augment: str
    all_data: bool = False
    gradient_noise: float = 0.0
    schedule: str = "constant"
    sharpness: float = 0.0
    only: str = ""
    span: tuple[int, int] = (0, 0)

    @property
    def passes(self) -> int:
        """Gradients that one step takes."""
        return 2 if self.sharpness else 1

    @property
    def key(self) -> str:
        """A readable name, the same for equal settings."""
        parts = [self.optimizer, f"lr{_short(self.lr)}", f"m{_short(self.momentum)}"]
        parts += [f"b{self.batch}"]
        parts += [f"wd{_short(self.weight_decay)}"] if self.weight_decay else []
        parts += [self.augment] if self.augment != "none" else []
        parts += ["all-data"] if self.all_data else []
        parts += [f"noise{_short(self.gradient_noise)}"] if self.gradient_noise else []
        parts += [f"sam{_short(self.sharpness)}"] if self.sharpness else []
        parts += [f"only-{quote(self.only, safe='')}"] if self.only else []
        if self.schedule != "constant":
            parts += [self.schedule, *(str(end) for end in self.span if end)]
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
        ema_decay: of an exponential moving average of the weights.
        start: where it begins instead of a trunk; None: at one.
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
    ema_decay: float = 0.0
    start: Start | None = None

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
        del described["training"]["span"]  # budget and epochs say it
        if self.start is not None:
            described["start_from"] = self.start.arm.label
        if self.ema_decay:
            described["ema_decay"] = self.ema_decay
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


@dataclass(frozen=True)
class Start:
    """Where an arm begins that goes on from the end of another: the weights that one ended with.

    Attributes:
        arm: the other one.
        budget: sample-forwards at which that one ends; None: with its last epoch.
    """

    arm: Arm
    budget: int | None = None

    @property
    def name(self) -> str:
        """A readable name, the same for equal ones."""
        return self.arm.label if self.budget is None else f"{self.arm.label}-{self.budget}"


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _short(number: float) -> str:
    """The number as text, as short as can be without becoming another one."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
