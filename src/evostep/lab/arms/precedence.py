"""How options become arms: of what is set for one and the same thing the more specific wins."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from evostep.acceptance import RULES
from evostep.errors import InputError, unknown_name, warn, warn_renamed
from evostep.lab.arms.arm import Arm, PopulationSizes, Training
from evostep.lab.arms.methods import METHODS, Method, read_setting, setting_kinds
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.starts import with_starts
from evostep.lab.options import Options, check_type, flag, read_arms
from evostep.schedule import Alternate
from evostep.spaces.base import Space
from evostep.spaces.span import Span
from evostep.spaces.weights import AllWeights, Only
from evostep.strategies.base import Strategy
from evostep.strategies.random_mutation import RandomMutation

_TRAINING = ("optimizer", "lr", "momentum", "weight_decay", "batch", "augment")
MOST_OF_A_LABEL = 100
_SHARED = ("sigma", "population")  # settings of a strategy that are options for all methods, too
_OF_STRATEGY = ("sigma", "accept", "space")
# what an arm may set for itself: how it is told, and options
_FORM = ("method", "label", "strategy", "start_from")
_OF_METHODS = ("ema_decay", "sam_rho")  # settings of one method each
_OPTIONS = (
    *_TRAINING,
    "schedule",
    "train_only",
    *_SHARED,
    "generations",
    "every",
    "accept",
    "space",
    *_OF_METHODS,
)
# settings that were called otherwise, and are still read: old name -> name
OLD_NAMES: dict[type[Strategy], dict[str, str]] = {RandomMutation: {"children": "population"}}


def make_arms(options: Options) -> list[Arm]:
    """Make the arms that the options ask for; warn of an option that has no effect on any of them.

    Raises:
        InputError: an unknown method or setting, two arms with one label, a value that a strategy
            refuses, settings of a method that is no arm (a warning, where a file may hold them).
    """
    entries = read_arms(options.arms, METHODS)
    arms = [_make_arm(entry, options) for entry in entries]
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two arms are called {label!r}: give each its own label in YAML")
    starts = (entry.get("start_from") for entry in entries)
    arms = with_starts(arms, dict(zip(labels, starts, strict=True)))
    if not options.epochs:
        _check_standing(arms)
    _check_settings_of_methods(entries, options)
    given = [
        name for name in _OPTIONS if name in options.given and getattr(options, name) is not None
    ]
    concerned = {
        name: [entry for entry in entries if _concerns(name, METHODS[entry["method"]])]
        for name in given
    }
    if idle := [flag(name) for name in given if not concerned[name]]:
        does = "uses" if {"--schedule", "--ema-decay", "--sam-rho"} & {*idle} else "evolves by"
        warn(
            f"{' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect: of the arms "
            f"({', '.join(labels)}) none {does} it"
        )
    for name in given:
        if concerned[name] and all(name in _own_names(e, options) for e in concerned[name]):
            warn(f"{flag(name)} has no effect: every arm sets its own {name}")
    return arms


def _check_standing(arms: list[Arm]) -> None:
    """Refuse arms that need gradient steps where there are none."""
    for arm in arms:
        if arm.start is not None and arm.strategy is not None:
            continue
        if arm.start is not None or PROCEDURES[arm.procedure].descends:
            raise InputError(
                f"arm {arm.label!r} takes gradient steps, and --epochs 0 has none: evolve, with "
                "start_from the label of an arm of the method untouched, or leave it out"
            )


def _check_settings_of_methods(entries: list[dict[str, Any]], options: Options) -> None:
    """Refuse settings of methods that are no arms; a file may hold them for other comparisons."""
    methods = dict.fromkeys(entry["method"] for entry in entries)
    for method in options.strategies.keys() - methods.keys():
        settings = " and ".join(f"--{method}.{name}" for name in options.strategies[method])
        verb = "has" if len(options.strategies[method]) == 1 else "have"
        text = f"{settings} {verb} no effect: {method} is none of the arms ({', '.join(methods)})"
        if not options.from_file:
            raise InputError(f"{text}: add it to --arms, or leave the setting out")
        warn(text)


def _concerns(name: str, method: Method) -> bool:
    """Return whether an option matters to a method at all."""
    if name in _OF_STRATEGY:
        return method.strategy is not None
    if name == "schedule":
        return method.schedule is None
    if name == "train_only":
        return not method.populates
    if name in _OF_METHODS:
        return name in PROCEDURES[method.procedure].reads or (name == "sam_rho" and method.sharp)
    return name in _TRAINING or method.evolves


def _own_names(entry: Mapping[str, Any], options: Options) -> set[str]:
    """Return the general options that an arm, or its method, overrides."""
    own = {name for name in _OPTIONS if entry.get(name) is not None}
    particular = {*options.strategies.get(entry["method"], ()), *entry.get("strategy", ())}
    return own | {name for name in _SHARED if name in particular}


def _make_arm(entry: Mapping[str, Any], options: Options) -> Arm:
    method = METHODS[entry["method"]]
    label = entry.get("label", entry["method"])
    if label is None or not re.fullmatch(r"[\w.+=-]+", str(label)):
        raise InputError(f"label {label!r} may hold letters, digits and the signs . + = - _ only")
    label = str(label)
    if len(label) > MOST_OF_A_LABEL:
        raise InputError(
            f"label {label[:20]}... has {len(label)} characters: give at most {MOST_OF_A_LABEL}, "
            "for it names a folder"
        )
    check_type(f"strategy of arm {label!r}", entry.get("strategy", {}), Mapping)
    settings = {name: entry[name] for name in entry if name not in _FORM}
    for name in settings:
        if name not in _OPTIONS:
            raise unknown_name(f"setting of arm {label!r}", str(name), (*_FORM, *_OPTIONS))
    try:  # the arm's own settings are checked as the options are
        chosen = dataclasses.replace(options, **settings)
    except InputError as error:
        raise InputError(f"arm {label!r}: {error}") from error
    training = Training(
        **{name: getattr(chosen, name) for name in _TRAINING},
        all_data=method.all_data,
        gradient_noise=method.gradient_noise,
        schedule=entry.get("schedule") or method.schedule or chosen.schedule,
        sharpness=chosen.sam_rho if method.sharp else 0.0,
        only=chosen.train_only or "",
    )
    if method.procedure == "population" and training.schedule != "constant":
        raise InputError(
            f"arm {label!r}: its individuals have learning rates of their own, which --schedule "
            f"{training.schedule} would not move: give it schedule: constant in YAML"
        )
    if method.populates and training.only:
        raise InputError(
            f"arm {label!r}: gradients move all weights of its individuals, and --train-only "
            f"{training.only} would not: leave it out for this arm"
        )
    sizes = PopulationSizes()
    if method.populates and chosen.population is not None:
        sizes = dataclasses.replace(sizes, offspring=chosen.population)
    return Arm(
        label=label,
        method=entry["method"],
        procedure=method.procedure,
        training=training,
        strategy=_make_strategy(entry, label, options),
        schedule=_make_schedule(method, chosen, options),
        accept=RULES[chosen.accept or method.accept],
        space=make_space(chosen.space or method.space or "all"),
        at_end=method.phases == "end",
        epochs=_epochs(method, options, sizes),
        population=sizes,
        ema_decay=chosen.ema_decay if "ema_decay" in PROCEDURES[method.procedure].reads else 0.0,
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
    if method.populates:
        return options.evolve_from + math.ceil(own / sizes.individuals)
    return options.epochs


def _make_strategy(entry: Mapping[str, Any], label: str, options: Options) -> Strategy | None:
    strategy = METHODS[entry["method"]].strategy
    if strategy is None:
        if entry.get("strategy"):
            raise InputError(
                f"arm {label!r} has a strategy, but {entry['method']!r} does not evolve"
            )
        return None
    kinds, settings = setting_kinds(strategy), _resolve(entry, options)
    for old, new in OLD_NAMES.get(type(strategy), {}).items():
        if old in entry.get("strategy", {}):
            if new in entry["strategy"]:
                raise InputError(
                    f"arm {label!r}: {new} and {old}, its old name, are both given: leave {old} out"
                )
            warn_renamed(f"{old} of arm {label!r}", new)
            settings[new] = settings.pop(old)
    for name, value in settings.items():
        if name not in kinds:
            raise unknown_name(f"strategy setting of arm {label!r}", str(name), kinds)
        settings[name] = read_setting(name, value)
        check_type(f"{name} of arm {label!r}", settings[name], kinds[name])
    try:
        return dataclasses.replace(strategy, **settings)  # type: ignore[type-var]
    except ValueError as error:
        raise InputError(f"arm {label!r}: {error}") from error


def _resolve(entry: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return the settings of an arm's strategy: whatever is more specific wins.

    The options for all methods, then those of its method, then its own. Where the command line and
    a file set one and the same option, the command line has won already.
    """
    general = {name: getattr(options, name) for name in _SHARED}
    of_method = options.strategies.get(entry["method"], {})
    of_arm = {name: entry.get(name) for name in _SHARED}
    settings = {name: value for name, value in general.items() if value is not None}
    settings |= of_method
    settings |= {name: value for name, value in of_arm.items() if value is not None}
    return settings | dict(entry.get("strategy", {}))


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
