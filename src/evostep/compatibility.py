"""Do fitness, space and acceptance go together? Errors and warnings before a phase begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evostep.acceptance import Rule
from evostep.errors import InputError, warn
from evostep.genome.slots import Slots, moves
from evostep.ranks import group_size
from evostep.scoring.calibration import estimates
from evostep.scoring.fitness import Fitness
from evostep.spaces.base import Space
from evostep.spaces.workspace import Workspace
from evostep.strategies.base import State, Strategy

FitnessLike = Fitness | Callable[[], float]
_FEW = 0.5  # share of weights of 16 bits that a member changes, below which a warning says so
_COUNTED = 2**22  # weights that are counted for it


def check_processes(tensors: Mapping[str, Tensor], fitness: FitnessLike | None = None) -> None:
    """Refuse what is spread over ranks, and in a group of several a forward that waits for others.

    Ranks score different members, so none of them may wait within a forward.
    """
    for name, tensor in tensors.items():
        if any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__):
            raise InputError(
                f"{name!r} is a DTensor (sharded over processes), which cannot be evolved: evolve "
                "an unsharded copy of the model in one process, then load its weights"
            )
    if not isinstance(fitness, Fitness) or group_size() == 1:
        return
    for module in fitness.model.modules():
        kind = type(module).__name__
        if kind == "FullyShardedDataParallel":
            raise InputError(
                "the fitness scores a FullyShardedDataParallel, whose weights are spread over "
                "processes: evolve an unsharded copy of the model, then load its weights"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise InputError(
                f"the fitness scores a {kind}, whose forward waits for the other processes: score "
                "the module inside, evostep.integrations.unwrapped(model)"
            )
        waits = fitness.mode == "train" or fitness.calibration is not None
        if isinstance(module, nn.SyncBatchNorm) and waits:
            raise InputError(
                "the fitness runs SyncBatchNorm in train mode, which waits for the other "
                "processes: score in mode='eval', without calibration="
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


def warn_of_lost(
    before: Slots, slots: Slots, scored: nn.Module, own_forward: bool, told: set[str]
) -> None:
    """Warn, once each, of tensors that do not move as the model that is scored lacks them.

    A loss's own parameters are as they should be; a layer that was replaced, perhaps by one of as
    many inputs, is a mistake.

    Args:
        before: as of the phase before.
        slots: as they are.
        scored: the fitness's model.
        own_forward: whether the fitness has a `forward` of its own, which may use any tensor.
        told: names of which it was told before; those told now are added.
    """
    if slots.outside <= told:
        return
    held = {id(tensor) for tensor in slots.tensors.values()}
    new = {
        name: p
        for name, p in scored.named_parameters()
        if p.requires_grad and moves(p) and id(p) not in held
    }
    shapes = {p.shape for p in new.values()}
    inputs = {p.shape[1:] for p in new.values() if p.dim() > 1}
    lost = {
        name
        for name in slots.outside
        for shape in [slots.tensors[name].shape]
        if shape in shapes
        or (len(shape) > 1 and shape[1:] in inputs)
        or (before.places and new and name not in before.outside)
    }
    if lost:
        text = (
            f"{_listed(lost)} of the optimizer: the model has it no more, so it does not move; nor "
            f"does the model's {_listed(new)}, which the optimizer lacks: pass it to "
            "add_param_group(), or make a new optimizer"
        )
    elif own_forward:
        text = (
            f"{_listed(slots.outside)} of the optimizer does not move, as the fitness's model "
            "lacks it: where forward= uses it, pass model= that holds both"
        )
    else:
        return
    told.update(slots.outside)
    warn(text)


def warn_of_guess(slots: Slots, layers: Sequence[str], told: set[str]) -> None:
    """Warn, once, where nothing but the order of definition tells which layer is the head.

    Args:
        slots: whose head is known, if it is.
        layers: the paths of those that it may be, the last of which is taken.
        told: what it was told of before; this is added.
    """
    if slots.head or len(layers) < 2 or "head" in told:
        return
    told.add("head")
    own = [place.path for place in slots.places if place.module == layers[-1]]
    name = _listed([layers[-1]] if layers[-1] else own)
    warn(
        f"'head' is taken to be {name}, the last of {len(layers)} layers by their order of "
        "definition, as no forward tells which one makes the outputs: pass an evostep.Fitness, or "
        f"name it, as Only({name})"
    )


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


@torch.no_grad()
def check_precision(
    strategy: Strategy, workspace: Workspace, state: State, generation: int, seed: int
) -> None:
    """Warn where members differ from the center in few weights, being rounded to 16 bits."""
    genome, space = workspace.genome, workspace.space
    half = {
        name: tensor
        for name, tensor in workspace.live.items()
        if tensor.dtype in (torch.bfloat16, torch.float16) and genome.sigma.get(name) != 0
    }
    if not half or not space.holds_weights or space.precise or strategy.needs_probe:
        return
    member = strategy.member(genome, state, generation, 0, seed)
    counted, changed = 0, []
    for name, tensor in half.items():
        changed.append((member.tensor(name).to(tensor.dtype) != tensor).sum().cpu())
        counted += genome.sizes[name]
        if counted >= _COUNTED:
            break
    share = float(torch.stack(changed).sum()) / max(counted, 1)
    if share < _FEW:
        kind = str(next(iter(half.values())).dtype).removeprefix("torch.")
        warn(
            f"a member changes {share:.0%} of the {kind} weights: sigma is below their precision "
            f"elsewhere; take a larger sigma, or the space's precision='float32', which keeps a "
            "finer center"
        )
