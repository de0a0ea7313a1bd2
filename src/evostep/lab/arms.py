"""Arms: what is compared. An arm is a method, a label, and settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evostep.acceptance import Always, Improves, Rule
from evostep.errors import InputError, unknown_name
from evostep.lab.options import ArmEntry, Options
from evostep.schedule import Alternate
from evostep.spaces.base import Space
from evostep.spaces.weights import AllWeights, Only
from evostep.strategies.base import Strategy
from evostep.strategies.openai_es import OpenAIES
from evostep.strategies.random_mutation import RandomMutation


@dataclass(frozen=True)
class Method:
    """A way to train, by name.

    Attributes:
        summary: one line.
        source: where it is from.
        strategy: the strategy with its defaults; None where gradients do everything.
        size_field: which field of the strategy `--population` sets.
        all_data: whether it trains on the fitness and accept examples, too.
    """

    summary: str
    source: str
    strategy: Strategy | None = None
    size_field: str = "population"
    all_data: bool = False


METHODS: dict[str, Method] = {
    "sgd": Method("the base optimizer alone", "control"),
    "sgd-all": Method(
        "the base optimizer alone, trained on the fitness and accept examples, too",
        "control for the data that evolution sees",
        all_data=True,
    ),
    "mutation": Method(
        "random mutations of all weights, the best one kept if it is better",
        "Spartan neural network training, 2020, method 1",
        RandomMutation(sigma=0.02, children=16),
        size_field="children",
    ),
    "openai-es": Method(
        "OpenAI-ES on all weights",
        "arXiv 1703.03864; Spartan neural network training, 2020, method 2",
        OpenAIES(sigma=0.02, lr=0.004, population=16),
    ),
}

_TRAINING = ("optimizer", "lr", "momentum", "weight_decay", "batch", "augment")
_EVOLUTION = ("sigma", "population", "generations", "every", "accept", "space")
_RULES: dict[str, Rule] = {"improves": Improves(), "always": Always()}


@dataclass(frozen=True)
class Training:
    """How gradients are used: what decides which arms can share a trunk."""

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    batch: int
    augment: str
    all_data: bool

    @property
    def key(self) -> str:
        """A readable name, the same for equal settings."""
        parts = [self.optimizer, f"lr{self.lr:g}", f"m{self.momentum:g}", f"b{self.batch}"]
        parts += [f"wd{self.weight_decay:g}"] if self.weight_decay else []
        parts += [self.augment] if self.augment != "none" else []
        parts += ["all-data"] if self.all_data else []
        return "-".join(parts)


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison.

    Attributes:
        label: unique within the comparison.
        method: its name among `METHODS`.
        training: how gradients are used.
        strategy: how it evolves; None where it does not.
        schedule: when it evolves.
        accept: when a new center replaces its parent.
        space: which weights evolve.
        settings: what of this was set for the arm itself, as it was written.
    """

    label: str
    method: str
    training: Training
    strategy: Strategy | None
    schedule: Alternate
    accept: Rule
    space: Space
    settings: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Give everything that determines the arm's result, as plain data."""
        described: dict[str, Any] = {
            "label": self.label,
            "method": self.method,
            "training": dataclasses.asdict(self.training),
        }
        if self.strategy is not None:
            described["strategy"] = {
                "name": type(self.strategy).__name__,
                **dataclasses.asdict(self.strategy),  # type: ignore[call-overload]
            }
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
    for name in settings:
        if name not in (*_TRAINING, *_EVOLUTION):
            known = ("method", "label", "strategy", *_TRAINING, *_EVOLUTION)
            raise unknown_name(f"setting of arm {label!r}", name, known)
    # the arm's own settings are checked as the options are
    chosen = dataclasses.replace(options, **settings)
    training = Training(
        **{name: getattr(chosen, name) for name in _TRAINING}, all_data=method.all_data
    )
    return Arm(
        label=label,
        method=method_name,
        training=training,
        strategy=_make_strategy(method_name, label, chosen, own_strategy),
        schedule=Alternate(
            gradient=chosen.every,
            evolution=chosen.generations if method.strategy is not None else 0,
            start=options.evolve_from,
        ),
        accept=_RULES[chosen.accept],
        space=make_space(chosen.space),
        settings=settings,
    )


def _make_strategy(
    method_name: str, label: str, options: Options, own: Mapping[str, Any]
) -> Strategy | None:
    """Apply, in rising order, the method's defaults, its options, --sigma and the arm's own."""
    method = METHODS[method_name]
    if method.strategy is None:
        if own:
            raise InputError(f"arm {label!r} has a strategy, but {method_name!r} does not evolve")
        return None
    fields = {f.name for f in dataclasses.fields(method.strategy)}  # type: ignore[arg-type]
    settings = dict(options.strategies.get(method_name, {}))
    if options.sigma is not None and "sigma" in fields:
        settings["sigma"] = options.sigma
    if options.population is not None:
        settings[method.size_field] = options.population
    settings.update(own)
    for name in settings:
        if name not in fields:
            raise unknown_name(f"strategy setting of arm {label!r}", name, fields)
    try:
        return dataclasses.replace(method.strategy, **settings)  # type: ignore[type-var]
    except ValueError as error:
        raise InputError(f"arm {label!r}: {error}") from error
    except TypeError as error:
        raise InputError(f"arm {label!r}: a strategy setting has the wrong type: {error}") from error


def make_space(text: str) -> Space:
    """Make the space that an option names: ``all``, or patterns for `Only`.

    Example:
        >>> make_space("head, norm")
        Only('head', 'norm')
    """
    patterns = [part.strip() for part in text.split(",") if part.strip()]
    if not patterns or patterns == ["all"]:
        return AllWeights()
    return Only(*patterns)
