"""Options of a comparison: one frozen dataclass, from which the command line is made."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from evostep.errors import InputError, unknown_name

ArmEntry = str | dict[str, Any]
MOST_SEEDS = 10_000
_NUMBER = r"[0-9]{1,20}"  # 2^64 has 20 digits, and Python reads no more than 4,300


@dataclass(frozen=True)
class Options:
    """What to compare, on which data, with which settings. An arm in YAML may set its own.

    Attributes:
        strategies: method -> the settings that were set for it, and for no other.
        given: which options were set, be it to their defaults.
        from_file: whether a file set some of them. Files are shared among comparisons, so that
            what has no effect is warned of, and not refused.

    Raises:
        InputError: a value of the wrong type, a number that is not finite or out of its range.
    """

    data: Annotated[str, "{data}"] = "digits"
    data_dir: Annotated[Path | None, "folder that holds the data, where it is not found"] = None
    image_size: Annotated[int | None, "size to which a folder's images are brought"] = None
    skip_bad: Annotated[
        int, "files of an image folder that may be bad: these are left out, and listed"
    ] = 0
    model: Annotated[
        str, "{model}, a torchvision name such as resnet18, or package.module:name"
    ] = "small-cnn"
    pretrained: Annotated[bool, "start from torchvision's pretrained weights"] = False
    init_from: Annotated[Path | None, "start from the weights in this .safetensors file"] = None
    arms: Annotated[
        str | list[ArmEntry], "methods, comma-separated; in YAML a list with settings"
    ] = "sgd,sgd-all,mutation,openai-es"
    seeds: Annotated[
        str | int | list[int], "a count (3 = 0,1,2), a list 0,4,7, a range 100:108"
    ] = 3
    epochs: Annotated[
        int, "epochs of gradient descent in a run; 0: none, where the model is a black box"
    ] = 30
    evolve_from: Annotated[int, "epochs before the first evolution; the trunk that arms share"] = 20
    every: Annotated[int, "epochs of gradient descent between two phases of evolution"] = 1
    generations: Annotated[int, "generations in a phase of evolution"] = 5
    train_size: Annotated[int | None, "training examples; default: all that are left"] = None
    fitness_size: Annotated[
        int,
        "examples that score members; unless set, all of a folder val/ beside test/, and at most a "
        "third of what test and accept leave",
    ] = 300
    accept_size: Annotated[int, "examples that decide survival; 0: the fitness examples decide"] = 0
    test_size: Annotated[
        int | None, "test examples; default: the official test set, or a quarter of the data"
    ] = None
    batch: Annotated[int, "examples in a gradient step"] = 64
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], "base optimizer"] = "sgd"
    lr: Annotated[float, "learning rate of the base optimizer"] = 0.01
    momentum: Annotated[float, "momentum of SGD; the first beta of Adam"] = 0.9
    weight_decay: Annotated[float, "weight decay of the base optimizer"] = 0.0
    schedule: Annotated[
        Literal["constant", "cosine"],
        "how the learning rate goes; cosine: down to 0 where the run ends",
    ] = "constant"
    train_only: Annotated[
        str | None, "weights that gradients move, patterns such as head,norm; default: all"
    ] = None
    ema_decay: Annotated[float, "decay of ema's average of the weights, a step"] = 0.99
    sam_rho: Annotated[float, "how far sam looks for a higher loss, in units of the weights"] = 0.05
    augment: Annotated[str, "augmentation of training images"] = "none"
    metric: Annotated[
        str,
        "what evolution maximises and the tables show: {metric}, or package.module:attribute",
    ] = "accuracy"
    higher_is_better: Annotated[bool | None, "direction of a metric that does not say it"] = None
    sigma: Annotated[float | None, "sigma of every method (else each method's own)"] = None
    population: Annotated[int | None, "members a generation of every method"] = None
    space: Annotated[
        str | None,
        "which weights evolve: all, patterns such as head,norm,layer4.*, or span (mixtures of the "
        "run's checkpoints; span:layer for a mixture of each layer's own); default: the method's",
    ] = None
    accept: Annotated[
        str | None,
        "when a new center replaces its parent; default: the method's own. The last four judge a "
        "phase on the accept examples",
    ] = None
    calibration_size: Annotated[
        int, "training examples on which a mixture's BatchNorm statistics are estimated again"
    ] = 500
    equal_budget: Annotated[bool, "run every arm up to the budget of the costliest one"] = True
    budget: Annotated[
        int | None, "sample-forwards of every run; default: what the costliest arm needs"
    ] = None
    contrast: Annotated[
        dict[str, Any] | None,
        "in YAML: the one contrast that is registered before the seeds are run: hypothesis, arm, "
        "controls, metric, tuning_seeds, trials",
    ] = None
    engine: Annotated[str, "how members are scored; auto: the fastest that can take them"] = "auto"
    device: Annotated[str, "auto, cpu, cuda, ..."] = "auto"
    threads: Annotated[int | None, "CPU threads of torch; default: torch's own choice"] = None
    strategies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    from_file: bool = False

    def __post_init__(self) -> None:
        for name, kind in option_kinds().items():
            check_type(flag(name), getattr(self, name), kind)
        for name, least in (
            ("epochs", 0),
            ("evolve_from", 0),
            ("every", 1),
            ("generations", 0),
            ("batch", 2),
            ("calibration_size", 2),
            ("threads", 1),
            ("budget", 1),
            ("weight_decay", 0),
            ("skip_bad", 0),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"{flag(name)} must be at least {least}, got {value}")
        if self.evolve_from > self.epochs:
            raise InputError(
                f"--evolve-from {self.evolve_from} lies past the end: there are {self.epochs} "
                "epochs; lower it or raise --epochs"
            )
        for name in ("lr", "sam_rho"):
            if getattr(self, name) <= 0:
                raise InputError(f"{flag(name)} must be > 0, got {getattr(self, name)}")
        for name in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{flag(name)} must lie in [0, 1), got {getattr(self, name)}")
        if self.budget is not None and not self.equal_budget:
            raise InputError(
                f"--budget {self.budget} and --equal-budget false exclude each other: leave one out"
            )

    def chosen(self, name: str) -> bool:
        """Return whether an option was set, be it to its default."""
        return name in self.given or getattr(self, name) != getattr(type(self), name)

    @property
    def seed_list(self) -> list[int]:
        """The seeds, in order."""
        return parse_seeds(self.seeds)


def option_kinds() -> dict[str, Any]:
    """Return the type of each option; what it chooses among is what the tables hold."""
    from evostep.acceptance import RULES  # these import torch
    from evostep.engines import ENGINES
    from evostep.lab.data.images import AUGMENTATIONS

    return _annotations() | {
        "accept": one_of([*RULES, None]),
        "augment": one_of(AUGMENTATIONS),
        "engine": one_of(["auto", *ENGINES]),
    }


@functools.cache
def _annotations() -> dict[str, Any]:
    return typing.get_type_hints(Options)  # three milliseconds, which every arm would take anew


def one_of(values: Iterable[str | None]) -> Any:
    """Return the type of a value that is one of these.

    Example:
        >>> one_of(["sgd", "adam", None]) == Literal["sgd", "adam"] | None
        True
    """
    values = list(values)
    names = tuple(value for value in values if value is not None)
    kind: Any = Literal.__getitem__(names)
    return kind | None if None in values else kind


def read_arms(arms: str | list[ArmEntry], methods: Iterable[str]) -> list[dict[str, Any]]:
    """Return arms as mappings, each with its `method`.

    Raises:
        InputError: none, or one without a method that is among `methods`.

    Example:
        >>> read_arms("sgd, mutation", ["sgd", "mutation"])
        [{'method': 'sgd'}, {'method': 'mutation'}]
    """
    check_type("--arms", arms, str | list)
    methods = list(methods)
    entries: list[Any] = list(arms)
    if isinstance(arms, str):
        entries = [part.strip() for part in arms.split(",") if part.strip()]
    if not entries:
        raise InputError(f"--arms is empty: choose from {', '.join(methods)}")
    read = [_settings(entry) if isinstance(entry, dict) else {"method": entry} for entry in entries]
    for settings, entry in zip(read, entries, strict=True):
        name = settings.get("method")
        if not isinstance(name, str):
            raise InputError(f"an arm needs a method ({', '.join(methods)}), got {entry!r}")
        if name not in methods:
            raise unknown_name("arm", name, methods)
    return read


def _settings(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an arm's settings by name; they may be written as flags are: start-from."""
    settings: dict[str, Any] = {}
    for written, value in entry.items():
        name = str(written).replace("-", "_")
        if name in settings:
            raise InputError(f"an arm sets {name} twice: leave {written} out")
        settings[name] = value
    return settings


def flag(name: str) -> str:
    """Return the command-line flag of an option's name."""
    return "--" + name.replace("_", "-")


def check_type(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that is not of the kind that an annotation tells, or not finite.

    A whole number passes as a float; a bool as neither a float nor an int.

    Raises:
        InputError: naming the setting, the value, and what is expected.

    Example:
        >>> check_type("--epochs", 3, int)
        >>> check_type("lr", "fast", float)
        Traceback (most recent call last):
        evostep.errors.InputError: lr must be a number, got 'fast'
    """
    if not _fits(value, kind):
        value = repr(value) if isinstance(value, str) else value
        raise InputError(f"{name} must be {kind_in_words(kind)}, got {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value}")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise InputError(
            f"{name} must be a number that a float can hold, got one of 309 digits or more"
        )


def shown(value: Any) -> str:
    """Return a value as it is written on the command line and in YAML.

    Example:
        >>> shown(None), shown(True), shown("fast"), shown([1, None])
        ('null', 'true', 'fast', '[1, null]')
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def kind_in_words(kind: Any) -> str:
    """Return what values a type annotation admits.

    Example:
        >>> kind_in_words(float | None), kind_in_words(Literal["sgd", "adam"])
        ('a number or null', 'sgd or adam')
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(kind_in_words, parts))
    known = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    known |= {Path: "a path", types.NoneType: "null", list: "a list", dict: "a mapping"}
    known |= {Mapping: "a mapping"}
    # objects, as `evostep.lab.arms.methods.read_setting` reads them
    objects = {"LowRank": "low-rank-1, low-rank-2, ...", "Safe": "safe-sum or safe-abs"}
    kind = origin or kind
    return known.get(kind) or objects.get(kind.__name__) or f"a {kind.__name__}"


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if kind in (int, float):
        numbers = int if kind is int else int | float
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def parse_seeds(value: int | str | Iterable[int]) -> list[int]:
    """Read seeds: a count, a list, or a range whose end is not included.

    Raises:
        InputError: none of these, an empty range, more than 10,000 of them, a seed that is
            negative, above 2^64 - 1 (the largest that torch takes) or given twice.

    Example:
        >>> parse_seeds(3), parse_seeds("4,7"), parse_seeds("100:103")
        ([0, 1, 2], [4, 7], [100, 101, 102])
    """
    text = str(value).strip()
    if isinstance(value, list | tuple):
        seeds = [int(seed) for seed in value]
    elif found := re.fullmatch(rf"(?:({_NUMBER}):)?({_NUMBER})", text):
        first, end = int(found[1] or 0), int(found[2])
        if end - first > MOST_SEEDS:
            raise InputError(
                f"--seeds {text!r} stands for {end - first} seeds, more than {MOST_SEEDS}: write "
                f"'{end},' for the one seed {end}"
            )
        seeds = list(range(first, end))
    elif re.fullmatch(rf"{_NUMBER}(\s*,\s*{_NUMBER})+|{_NUMBER},", text):
        seeds = [int(part) for part in text.split(",") if part.strip()]
    else:
        raise InputError(
            f"--seeds {text!r} is neither a count (3), nor a list (0,4,7), nor a range (100:108)"
        )
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text!r} must give distinct seeds >= 0, and at least one")
    if max(seeds) >= 2**64:
        raise InputError(f"seed {max(seeds)} is too large: give at most 2^64 - 1")
    return seeds
