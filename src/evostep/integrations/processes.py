"""One phase of evolution in a loop of one's own, whatever wraps the optimizer, on every process.

With several processes, as under DistributedDataParallel, the first one evolves, and the others wait
for what comes of it: weights, buffers, the optimizer's state, evolution's state and the records.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evostep.compatibility import FitnessLike, check_processes, only_one_process
from evostep.errors import InputError, reason
from evostep.integrations.trackers import Tracker
from evostep.integrations.wrappers import find_evolved
from evostep.optimizer import Evolved
from evostep.record import Record
from evostep.scoring.fitness import Fitness


def evolve(
    optimizer: Any,
    fitness: FitnessLike,
    generations: int = 1,
    *,
    trackers: Sequence[Tracker] = (),
    step: int | None = None,
    on_generation: Callable[[Record], object] | None = None,
    **options: Any,
) -> list[Record]:
    """Evolve the weights for some generations, as `Evolved.evolve` does, within any framework.

    In a process group every process calls it with the same arguments, between steps. Nothing but
    the first process scores, so a phase must not last longer than the group's timeout.

    Args:
        optimizer: an `Evolved`, or what Accelerate, Fabric or Lightning made of it.
        fitness: of the model itself, not of DistributedDataParallel around it.
        generations: how many.
        trackers: are told of every generation, and of the phase, in the first process.
        step: the number of gradient steps so far, for trackers.
        on_generation: see `Evolved.evolve`; called in the first process.
        **options: ``accept_on``, ``max_forwards`` and ``max_seconds`` of `Evolved.evolve`.

    Returns:
        One record for each generation, the same in each process.

    Raises:
        ValueError: see `Evolved.evolve`; no `Evolved` inside; a fitness of a wrapped model; sharded
            weights or a sharded optimizer. In a group it is raised in every process.

    Example:
        >>> import evostep
        >>> model = nn.Linear(2, 2)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = evostep.Evolved(base, evostep.OpenAIES(0.1))
        >>> batches = [(torch.randn(64, 2), torch.randint(2, (64,)))]
        >>> len(evolve(optimizer, evostep.Fitness(model, batches, "accuracy"), 3))
        3
    """
    found = find_evolved(optimizer)
    size = torch.distributed.get_world_size() if _in_a_group() else 1

    def tell(record: Record) -> object:
        for tracker in trackers:
            tracker.generation(record)
        return on_generation(record) if on_generation is not None else None

    phase = partial(found.evolve, fitness, generations, on_generation=tell, **options)
    if size == 1:
        records = phase()
    else:
        scored = fitness.model if isinstance(fitness, Fitness) else None
        _check_group(found, fitness)
        records = _by_the_first(found, scored, phase)
    if records and is_first():
        for tracker in trackers:
            tracker.phase(records, step)
    return records


def is_first() -> bool:
    """Return whether this is the process that evolves and tells trackers; alone it is."""
    return not _in_a_group() or torch.distributed.get_rank() == 0


def _in_a_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _check_group(found: Evolved, fitness: FitnessLike) -> None:
    """Refuse, in every process alike, what one process cannot evolve for all."""
    with only_one_process():
        check_processes(found.evolution.slots.live)
    if hasattr(found.base, "consolidate_state_dict"):
        raise InputError(
            f"{type(found.base).__name__} shards its state over processes, which cannot be "
            "evolved: use the optimizer that it shards"
        )
    if not isinstance(fitness, Fitness):
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


def _by_the_first(
    found: Evolved, scored: nn.Module | None, phase: Callable[[], list[Record]]
) -> list[Record]:
    """Let the first process run a phase, and all take over what came of it."""
    evolution = found.evolution
    failure: Exception | None = None
    told: list[Any] = [None, None, None, None]
    here = str(found.param_groups[0]["params"][0].device)
    if is_first():
        before = len(evolution.history)
        try:
            with only_one_process():
                phase()
        except Exception as error:  # the others would wait for ever; generations may be done
            failure = error
        state = io.BytesIO()
        torch.save(evolution.state_dict(), state)
        why = None if failure is None else reason(failure)
        told = [evolution.history[before:], state.getvalue(), here, why]
    torch.distributed.broadcast_object_list(told, src=0)
    records, piece, there, why = told
    with torch.no_grad():
        for tensor in _shared(found, scored):
            dense = tensor.contiguous()  # itself, unless it lies otherwise, as channels_last does
            torch.distributed.broadcast(dense, src=0)
            tensor.copy_(dense)
    if not is_first():
        where = {there: here}
        evolution.load_state_dict(
            torch.load(io.BytesIO(piece), map_location=where, weights_only=True)
        )
        evolution.history += records
    if failure is not None:
        raise failure
    if why is not None:
        raise InputError(f"evolution failed in the first process ({why})")
    return list(records)


def _shared(found: Evolved, scored: nn.Module | None) -> Iterator[Tensor]:
    """Yield, in one order everywhere, what a phase may have changed."""
    groups = found.param_groups
    seen: set[int] = set()
    everything = [p for group in groups for p in group["params"]]
    if scored is not None:
        everything += [*scored.parameters(), *scored.buffers()]
    for p in [*everything]:
        state = found.base.state.get(p, {})
        everything += [state[key] for key in sorted(state) if isinstance(state[key], Tensor)]
    device = next((p.device for p in everything if p.device.type != "cpu"), None)
    for tensor in everything:
        # counts of steps, on the CPU beside weights on a GPU, stay as they are
        if id(tensor) not in seen and device in (None, tensor.device):
            seen.add(id(tensor))
            yield tensor.data
