"""Arms: what is compared. An arm is a method, a label, and settings."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evostep.acceptance import Always, Improves, Ladder, PairedTest, Rule
from evostep.errors import InputError, unknown_name, warn_renamed
from evostep.lab.arms.methods import METHODS, Method, Procedure, read_setting
from evostep.lab.options import ArmEntry, Options, check_type
from evostep.schedule import Alternate
from evostep.spaces.base import Space
from evostep.spaces.span import Span
from evostep.spaces.weights import AllWeights, Only
from evostep.strategies.base import Strategy
from evostep.strategies.random_mutation import RandomMutation

_TRAINING = ("optimizer", "lr", "momentum", "weight_decay", "batch", "augment")
_EVOLUTION = ("sigma", "population", "generations", "every", "accept", "space")
_RULES: dict[str, Rule] = {
    "improves": Improves(),
    "always": Always(),
    "improves-phase": Improves(every="phase"),
    "mcnemar": PairedTest(kind="mcnemar"),
    "t": PairedTest(kind="t"),
    "permutation": PairedTest(kind="permutation"),
    "ladder": Ladder(),
}


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
        course: what it does besides plain epochs.
        training: how gradients are used.
        strategy: how it evolves; None where it does not.
        schedule: when it evolves.
        accept: when a new center replaces its parent.
        space: which weights evolve.
        at_end: whether it evolves once only, where its budget ends.
        epochs: how many it has where there is no budget.
        population: sizes of ESGD's population.
        settings: what of this was set for the arm itself, as it was written.
    """

    label: str
    method: str
    procedure: Procedure
    training: Training
    strategy: Strategy | None
    schedule: Alternate
    accept: Rule
    space: Space
    at_end: bool
    epochs: int
    population: PopulationSizes = PopulationSizes()
    settings: Mapping[str, Any] = field(default_factory=dict)

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


def make_arms(options: Options) -> list[Arm]:
    """Make the arms that the options ask for.

    Raises:
        InputError: an unknown method or setting, two arms with one label, a value that a strategy
            refuses.
    """
    entries: list[ArmEntry]
    if isinstance(options.arms, str):
        entries = [part.strip() for part in options.arms.split(",") if part.strip()]
    else:
        entries = list(options.arms)
    if not entries:
        raise InputError(f"--arms is empty: choose from {', '.join(METHODS)}")
    arms = [_make_arm(entry, options) for entry in entries]
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two arms are called {label!r}: give each its own label in YAML")
    return arms


def _make_arm(entry: ArmEntry, options: Options) -> Arm:
    settings: dict[str, Any] = {"method": entry} if isinstance(entry, str) else dict(entry)
    method_name = settings.pop("method", None)
    if not isinstance(method_name, str):
        raise InputError(f"an arm needs a method ({', '.join(METHODS)}), got {entry!r}")
    if method_name not in METHODS:
        raise unknown_name("arm", method_name, METHODS)
    method = METHODS[method_name]
    label = str(settings.pop("label", method_name))
    if not re.fullmatch(r"[\w.+=-]+", label):
        raise InputError(f"label {label!r} may hold letters, digits and the signs . + = - _ only")
    own_strategy = settings.pop("strategy", {})
    check_type(f"strategy of arm {label!r}", own_strategy, Mapping)
    for name in settings:
        if name not in (*_TRAINING, *_EVOLUTION):
            known = ("method", "label", "strategy", *_TRAINING, *_EVOLUTION)
            raise unknown_name(f"setting of arm {label!r}", name, known)
    try:  # the arm's own settings are checked as the options are
        chosen = dataclasses.replace(options, **settings)
    except InputError as error:
        raise InputError(f"arm {label!r}: {error}") from error
    training = Training(
        **{name: getattr(chosen, name) for name in _TRAINING},
        all_data=method.all_data,
        gradient_noise=method.gradient_noise,
    )
    sizes = PopulationSizes()
    if method.procedure == "population" and chosen.population is not None:
        sizes = dataclasses.replace(sizes, offspring=chosen.population)
    return Arm(
        label=label,
        method=method_name,
        procedure=method.procedure,
        training=training,
        strategy=_make_strategy(method_name, label, options, settings, own_strategy),
        schedule=_make_schedule(method, chosen, options),
        accept=_RULES[chosen.accept or method.accept],
        space=make_space(chosen.space or method.space or "all"),
        at_end=method.phases == "end",
        epochs=_epochs(method, options, sizes),
        population=sizes,
        settings=settings,
    )


def _make_schedule(method: Method, chosen: Options, options: Options) -> Alternate:
    start, evolution = options.evolve_from, chosen.generations if method.evolves else 0
    if method.phases == "end" and options.epochs > start:
        phases = (options.epochs - start) // chosen.every
        return Alternate(options.epochs - start, evolution * phases, start)
    return Alternate(chosen.every, evolution, start)


def _epochs(method: Method, options: Options, sizes: PopulationSizes) -> int:
    """An epoch of a population of mu counts as mu, so that it has as many fewer from the trunk."""
    own = options.epochs - options.evolve_from
    if method.procedure == "population":
        return options.evolve_from + math.ceil(own / sizes.individuals)
    return options.epochs


def _make_strategy(
    method_name: str,
    label: str,
    options: Options,
    of_arm: Mapping[str, Any],
    own: Mapping[str, Any],
) -> Strategy | None:
    """Apply, in rising order: --sigma and --population, the method's options, the arm's own."""
    method = METHODS[method_name]
    if method.strategy is None:
        if own:
            raise InputError(f"arm {label!r} has a strategy, but {method_name!r} does not evolve")
        return None
    kinds = typing.get_type_hints(type(method.strategy))
    fields = {f.name for f in dataclasses.fields(method.strategy)}  # type: ignore[arg-type]
    general = {"sigma": options.sigma, "population": options.population}
    # the command line gives every option of a method: only those that say something new count
    of_method: Mapping[str, Any] = {
        name: value
        for name, value in options.strategies.get(method_name, {}).items()
        if read_setting(name, value) != getattr(method.strategy, name, None)
    }
    own = _current_names(own, method.strategy, label)
    of_method = _current_names(of_method, method.strategy, label)
    of_arm = {"sigma": of_arm.get("sigma"), "population": of_arm.get("population")}
    settings: dict[str, Any] = {}
    for source in (general, of_method, of_arm):
        settings |= {name: value for name, value in source.items() if value is not None}
    settings |= own
    for name, value in settings.items():
        if name not in fields:
            raise unknown_name(f"strategy setting of arm {label!r}", name, fields)
        settings[name] = read_setting(name, value)
        check_type(f"{name} of arm {label!r}", settings[name], kinds[name])
    try:
        return dataclasses.replace(method.strategy, **settings)  # type: ignore[type-var]
    except ValueError as error:
        raise InputError(f"arm {label!r}: {error}") from error


def _current_names(
    settings: Mapping[str, Any], strategy: Strategy, label: str
) -> Mapping[str, Any]:
    """Read a mutation's `children`, as its population was called, with a warning."""
    if "children" not in settings or not isinstance(strategy, RandomMutation):
        return settings
    if "population" in settings:
        raise InputError(
            f"arm {label!r}: population and children, its old name, are both given: "
            "leave children out"
        )
    warn_renamed(f"children of arm {label!r}", "population")
    return {"population" if key == "children" else key: settings[key] for key in settings}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _short(number: float) -> str:
    """The number as text, as short as can be without becoming another one."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def make_space(text: str) -> Space:
    """Make the space that an option names: ``all``, ``span``, or patterns for `Only`.

    A `Span` has one coefficient for each checkpoint (``span:layer``: one for each layer, too), and
    they stay few enough for a short search.

    Example:
        >>> make_space("head, norm")
        Only('head', 'norm')
    """
    patterns = [part.strip() for part in text.split(",") if part.strip()]
    if not patterns or patterns == ["all"]:
        return AllWeights()
    if patterns in (["span"], ["span:layer"]):
        return Span(groups="layer" if patterns == ["span:layer"] else "all")
    return Only(*patterns)
