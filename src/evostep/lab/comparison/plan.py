"""A plan: everything that a comparison needs, checked before anything is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evostep.errors import InputError, reason, warn
from evostep.genome.slots import slots_of_module
from evostep.lab.arms.arm import Arm, Start, Training
from evostep.lab.arms.budget import budgets, settled
from evostep.lab.arms.methods import METHODS
from evostep.lab.arms.precedence import make_arms
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.registration import registered_contrast
from evostep.lab.arms.seed_run import make_model
from evostep.lab.arms.training import import_sam, moved_alone
from evostep.lab.data.images import ImageData, load_data
from evostep.lab.data.parts import Sizes, spare_of
from evostep.lab.data.splits import Splits, splits_of, warn_of_absent_classes
from evostep.lab.imports import resolve_metric
from evostep.lab.options import Options
from evostep.scoring.metrics import make_metric
from evostep.scoring.texts import encode

# Options that a directory of results may be continued with, whatever they were before
_FREE = (
    "arms",
    "seeds",
    "threads",
    "device",
    "data_dir",
    "skip_bad",  # what was left out is told by the splits
    "strategies",
    "given",
    "from_file",
    "budget",
)


@dataclass(frozen=True)
class Plan:
    """A comparison that can be run.

    Attributes:
        options: as given.
        arms: what is compared.
        data: loaded.
        splits: by seed.
        sizes: of the parts.
        budgets: by arm label; None: no common budget.
        device: where it runs.
    """

    options: Options
    arms: list[Arm]
    data: ImageData
    splits: Mapping[int, Splits]
    sizes: Sizes
    budgets: Mapping[str, int | None]
    device: torch.device

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(self.splits)

    @property
    def trunks(self) -> dict[str, tuple[Training, list[str]]]:
        """Key of each trunk -> its training, and the labels of the arms that branch from it."""
        found: dict[str, tuple[Training, list[str]]] = {}
        for arm in self.arms:
            first = arm
            while first.start is not None:
                first = first.start.arm
            found.setdefault(first.training.key, (first.training, []))[1].append(arm.label)
        return found

    @property
    def starts(self) -> dict[str, tuple[Start, list[str]]]:
        """Name of each start -> it, and the labels of the arms that lead through it."""
        found: dict[str, tuple[Start, list[str]]] = {}
        for arm in self.arms:
            start = arm.start
            while start is not None:
                found.setdefault(start.name, (start, []))[1].append(arm.label)
                start = start.arm.start
        return found

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for two comparisons to share a directory."""
        arms = describe_arms(self.arms)
        for label, described in arms.items():
            described["budget"] = self.budgets[label]
        return {"options": describe_options(self.options, self.arms), "arms": arms}


def describe_options(options: Options, arms: list[Arm]) -> dict[str, Any]:
    """Return the options that must be equal for two comparisons to share a directory.

    Raises:
        InputError: as `registered_contrast`.
    """
    described = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(options).items()
        if name not in _FREE
    }
    return described | {"contrast": registered_contrast(options, arms)}


def describe_arms(arms: list[Arm]) -> dict[str, dict[str, Any]]:
    """Return what determines the arms' results, by label."""
    return {arm.label: arm.describe() for arm in arms}


def make_plan(options: Options) -> Plan:
    """Check everything and load the data; nothing is written.

    Raises:
        InputError: whatever is wrong with the options, in one line.
    """
    device = find_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    arms = make_arms(options)
    seeds = options.seed_list
    registered_contrast(options, arms)  # refused before data are read
    if options.init_from is not None and options.pretrained:
        raise InputError("--pretrained and --init-from exclude each other: leave one out")
    scoring = [arm.label for arm in arms if METHODS[arm.method].needs_fitness]
    if scoring and options.fitness_size == 0:
        raise InputError(f"--fitness-size is 0, but {', '.join(scoring)} score on these examples")
    if any(arm.training.sharpness for arm in arms):
        import_sam()  # now, and not after hours of other arms
    _check_schedules(arms, options)
    data = load_data(
        options.data,
        options.data_dir,
        image_size=options.image_size,
        skip_bad=options.skip_bad,
    )
    splits = {seed: splits_of(options, data, seed) for seed in seeds}
    warn_of_absent_classes(data, splits)
    one = splits[seeds[0]]
    # as it is, for whoever reads the plan
    options = dataclasses.replace(options, fitness_size=len(one.fitness))
    sizes = Sizes(
        len(one.train),
        len(one.fitness),
        len(one.accept),
        len(one.test),
        calibration=min(options.calibration_size, len(one.train)),
        classes=len(data.classes),
        tunings=_tunings(arms, options, data, device),
        spare=len(spare_of(data, one)),
    )
    _check_metric(options, sizes)
    shares = budgets(arms, sizes, equal=options.equal_budget, budget=options.budget)
    arms = [settled(arm, arms, sizes, shares[arm.label]) for arm in arms]
    plan = Plan(options, arms, data, splits, sizes, shares, device)
    _check_spaces(plan)
    return plan


def _tunings(arms: list[Arm], options: Options, data: ImageData, device: torch.device) -> int:
    """Return how many settings the model's own `tune` tries at most; 0 where no arm asks it to."""
    by_hand = [arm.label for arm in arms if PROCEDURES[arm.procedure].tunes]
    if not by_hand:
        return 0
    model = make_model(options, data, options.seed_list[0], device)
    if not hasattr(model, "tune"):
        raise InputError(
            f"arm {by_hand[0]!r} tunes the model's own settings, and {options.model} has no method "
            "tune(score): use text-reader, or leave the arm out"
        )
    return int(model.tunings)  # type: ignore[arg-type]


def _check_merging(arms: list[Arm], options: Options, model: nn.Module, spare: int) -> None:
    """Refuse experts where nothing merges them, or where no images are left for them."""
    merging = [arm.label for arm in arms if PROCEDURES[arm.procedure].merges]
    if merging and not hasattr(model, "learn"):
        raise InputError(
            f"arm {merging[0]!r} merges experts, and {options.model} has no method learn(experts): "
            "use merged-cnn, or leave the arm out"
        )
    if merging and not spare:
        raise InputError(
            f"arm {merging[0]!r} trains experts on images that no part holds, and all are in one: "
            "give --train-size"
        )


def _check_metric(options: Options, sizes: Sizes) -> None:
    """Try the metric on outputs of the kind that it will see, before anything is trained."""
    try:
        metric = make_metric(
            resolve_metric(options.metric), higher_is_better=options.higher_is_better
        )()
    except (ValueError, ImportError) as error:
        # the library's argument, as the command line calls it
        text = str(error).replace("higher_is_better=", "--higher-is-better ")
        raise InputError(f"--metric {options.metric}: {text}") from error
    classes = sizes.classes
    parts = (sizes.train, sizes.fitness, sizes.accept, sizes.test)
    if classes:
        targets = torch.arange(max(2 * classes, min(filter(None, parts)))) % classes
        outputs = torch.nn.functional.one_hot(targets.roll(1), classes).float()
    else:
        targets, outputs = encode(["AB", "C"], 2), encode(["A", "C"], 4)
    try:
        metric.update(outputs, targets)
        value = float(metric.compute()[0])
    except Exception as error:  # a user's function may raise anything
        raise InputError(
            f"--metric {options.metric} fails on outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)} ({reason(error)}): name a function on (outputs, targets)"
        ) from error
    if not math.isfinite(value):
        warn(
            f"--metric {options.metric} is {value} on a trial in which every class is mistaken: "
            "where it is no finite number, members fail, and runs have no result"
        )


def _check_schedules(arms: list[Arm], options: Options) -> None:
    """Refuse an arm that evolves by name but has no phase of evolution in all its epochs."""
    for arm in arms:
        phases = [epoch for epoch in range(arm.epochs) if arm.schedule.generations(epoch)]
        if arm.schedule.evolution and not phases:
            raise InputError(
                f"arm {arm.label!r} never evolves: with --evolve-from {options.evolve_from} and "
                f"--every {arm.schedule.gradient} its first evolution lies past the end "
                f"({options.epochs} epochs): lower one of them, or raise --epochs"
            )


def _check_spaces(plan: Plan) -> None:
    """Build the model once, to find out now whether each arm's space finds its weights."""
    model = make_model(plan.options, plan.data, plan.seeds[0], plan.device)
    _check_merging(plan.arms, plan.options, model, plan.sizes.spare)
    slots = slots_of_module(model)
    for arm in plan.arms:
        try:
            if arm.training.only:
                moved_alone(arm.training.only).touched(slots)
            if arm.strategy is not None:
                arm.space.touched(slots)
        except ValueError as error:
            raise InputError(f"arm {arm.label!r}: {error}") from error


def find_device(name: str) -> torch.device:
    """Return the device of a name; auto: the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}): try auto or cpu") from error
    return device
