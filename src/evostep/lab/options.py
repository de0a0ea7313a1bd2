"""Options of a comparison: one frozen dataclass, from which the command line is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evostep.errors import InputError

OptimizerName = Literal["sgd", "adam", "adamw"]
Augmentation = Literal["none", "shift", "flip-shift"]
AcceptName = Literal["improves", "always"]

ArmEntry = str | dict[str, Any]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    """What to compare, on which data, with which settings. An arm in YAML may set its own.

    Raises:
        InputError: a number out of its range.
    """

    data: str = _option(
        "digits", "digits, fashion-mnist, cifar10, folder:PATH, or package.module:attribute"
    )
    data_dir: Path | None = _option(None, "folder that holds the data, where it is not found")
    image_size: int | None = _option(None, "size to which a folder's images are brought")
    model: str = _option(
        "small-cnn", "mlp, small-cnn, a torchvision name such as resnet18, or package.module:name"
    )
    pretrained: bool = _option(False, "start from torchvision's pretrained weights")
    init_from: Path | None = _option(None, "start from the weights in this .safetensors file")
    arms: str | list[ArmEntry] = _option(
        "sgd,mutation,openai-es", "methods, comma-separated; in YAML a list with settings"
    )
    seeds: int | str | list[int] = _option(3, "a count (3 = 0,1,2), a list 0,4,7, a range 100:108")
    epochs: int = _option(30, "epochs of gradient descent in a run")
    evolve_from: int = _option(20, "epochs before the first evolution; the trunk that arms share")
    every: int = _option(1, "epochs of gradient descent between two phases of evolution")
    generations: int = _option(5, "generations in a phase of evolution")
    train_size: int | None = _option(None, "training examples; default: all that are left")
    fitness_size: int = _option(300, "examples that score members")
    accept_size: int = _option(0, "examples that decide survival; 0: the fitness examples decide")
    test_size: int | None = _option(None, "test examples; default: the official test set, or 25%%")
    batch: int = _option(64, "examples in a gradient step")
    optimizer: OptimizerName = _option("sgd", "base optimizer")
    lr: float = _option(0.01, "learning rate of the base optimizer")
    momentum: float = _option(0.9, "momentum of SGD; the first beta of Adam")
    weight_decay: float = _option(0.0, "weight decay of the base optimizer")
    augment: Augmentation = _option("none", "augmentation of training images")
    metric: str = _option(
        "accuracy",
        "what evolution maximises and the tables show: accuracy, balanced-accuracy, macro-f1, "
        "neg-loss, or package.module:attribute",
    )
    higher_is_better: bool | None = _option(None, "direction of a metric that does not say it")
    sigma: float | None = _option(None, "sigma of every method (else each method's own)")
    population: int | None = _option(None, "members a generation of every method")
    space: str = _option("all", "which weights evolve: all, or patterns such as head,norm,layer4.*")
    accept: AcceptName = _option("improves", "when a new center replaces its parent")
    equal_budget: bool = _option(True, "run every arm up to the budget of the costliest one")
    device: str = _option("auto", "auto, cpu, cuda, ...")
    threads: int | None = _option(None, "CPU threads of torch; default: torch's own choice")
    strategies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("evolve_from", 0),
            ("every", 1),
            ("generations", 0),
            ("batch", 2),
            ("threads", 1),
            ("weight_decay", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{flag(name)} must be at least {least}, got {value}")
        if self.evolve_from > self.epochs:
            raise InputError(
                f"--evolve-from {self.evolve_from} lies past the end: there are {self.epochs} "
                "epochs; lower it or raise --epochs"
            )
        if not self.lr > 0:
            raise InputError(f"--lr must be > 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"--momentum must lie in [0, 1), got {self.momentum}")

    @property
    def seed_list(self) -> list[int]:
        """The seeds, in order."""
        return parse_seeds(self.seeds)


def flag(name: str) -> str:
    """Give the command-line flag of an option's name."""
    return "--" + name.replace("_", "-")


def parse_seeds(value: int | str | Iterable[int]) -> list[int]:
    """Read seeds: a count, a list, or a range whose end is not included.

    Raises:
        InputError: none of these, an empty range, a seed that is negative or given twice.

    Example:
        >>> parse_seeds(3), parse_seeds("4,7"), parse_seeds("100:103")
        ([0, 1, 2], [4, 7], [100, 101, 102])
    """
    text = str(value).strip()
    if isinstance(value, list | tuple):
        seeds = [int(seed) for seed in value]
    elif re.fullmatch(r"\d+", text):
        seeds = list(range(int(text)))
    elif re.fullmatch(r"\d+:\d+", text):
        seeds = list(range(*map(int, text.split(":"))))
    elif re.fullmatch(r"\d+(\s*,\s*\d+)+|\d+,", text):
        seeds = [int(part) for part in text.split(",") if part.strip()]
    else:
        raise InputError(
            f"--seeds {text!r} is neither a count (3), nor a list (0,4,7), nor a range (100:108)"
        )
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text!r} must give distinct seeds >= 0, and at least one")
    return seeds
