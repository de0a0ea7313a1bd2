"""Do fitness, space and acceptance go together? Errors and warnings before a phase begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evostep.acceptance import Rule
from evostep.errors import InputError, warn
from evostep.genome.slots import Slots
from evostep.scoring.calibration import estimates
from evostep.scoring.fitness import Fitness
from evostep.spaces.base import Space
from evostep.strategies.base import Strategy

FitnessLike = Fitness | Callable[[], float]


def check_processes(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are spread over processes, and a group of several processes."""
    for name, tensor in tensors.items():
        if any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__):
            raise InputError(
                f"{name!r} is a DTensor (sharded over processes), which cannot be evolved: evolve "
                "an unsharded copy of the model in one process, then load its weights"
            )
    group = torch.distributed
    if group.is_available() and group.is_initialized() and group.get_world_size() > 1:
        raise InputError(
            f"evolve in a group of {group.get_world_size()} processes would hang or drift apart: "
            "evolve in one process outside the group (before init_process_group), then broadcast "
            "the weights and buffers"
        )


def check_fitness(fitness: FitnessLike, space: Space, slots: Slots) -> None:
    """Refuse what is no fitness, and a `Fitness` of a model that does not evolve here."""
    if not callable(fitness):
        raise ValueError(
            f"fitness must be an evostep.Fitness or a callable, got {type(fitness).__name__}"
        )
    if isinstance(fitness, Fitness):
        scored = {id(t) for t in (*fitness.model.parameters(), *fitness.model.buffers())}
        live = slots.live
        if not any(id(live[name]) in scored for name in space.touched(slots)):
            raise ValueError(
                "the fitness scores a model that holds none of the tensors that evolve: make "
                "it with the model that is trained, not with a copy"
            )


def check_probe(fitness: FitnessLike, strategy: Strategy) -> None:
    """Refuse a bare callable where the strategy measures the network itself."""
    if strategy.needs_probe and not isinstance(fitness, Fitness):
        raise ValueError(
            f"{strategy!r} measures the network's outputs on the fitness's examples: give "
            f"an evostep.Fitness, not a {type(fitness).__name__}, or use scale='rms'"
        )


def check_choices(
    fitness: FitnessLike,
    accept_on: FitnessLike | None,
    rule: Rule,
    space: Space,
    slots: Slots,
    model: nn.Module | None,
) -> None:
    """Warn of choices that have no effect or judge by luck; refuse those that contradict."""
    if rule.needs_fresh and accept_on in (None, fitness):
        warn(
            f"{rule!r} judges on the examples that selected the candidate, where luck "
            "counts as gain: pass accept_on=",
        )
    if accept_on is not None and not rule.needs_scores:
        warn(
            f"accept_on has no effect: {rule!r} accepts without asking; take Improves()",
        )
    calibration = fitness.calibration if isinstance(fitness, Fitness) else None
    for name in space.touched(slots) if space.moves_buffers else ():
        owner = slots.owners.get(name, object)
        if calibration and name in slots.buffers and issubclass(owner, _BatchNorm):
            raise ValueError(
                f"{space!r} moves {name!r}, which calibration= estimates: leave one out"
            )
    if calibration is None and getattr(accept_on, "calibration", None) is not None:
        warn(
            "the calibration of accept_on has no effect: candidates are scored with the "
            "statistics that the fitness's calibration= gives",
        )
    model = fitness.model if isinstance(fitness, Fitness) else model
    if calibration is None and space.memory and model is not None and estimates(model):
        warn(
            f"{space!r} mixes weights but not BatchNorm statistics, which are the current "
            "weights': pass Fitness(calibration=) to estimate them again",
        )
