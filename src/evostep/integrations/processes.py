"""One phase of evolution in a loop of one's own, whatever wraps the optimizer, on every process.

With several processes, as under DistributedDataParallel, they share the members of each generation
(`evostep.engines.distributed`), and all come to the same weights, state and records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evostep.compatibility import FitnessLike
from evostep.errors import InputError
from evostep.integrations.trackers import Tracker
from evostep.integrations.wrappers import find_evolved
from evostep.ranks import group_size, is_first
from evostep.record import Record


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

    In a process group every process calls it with the same arguments, between steps. Buffers, such
    as BatchNorm statistics, are made those of the first process before.

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
            weights or a sharded optimizer. In a group, if another process has gone or differs.

    Example:
        >>> import torch, evostep
        >>> from torch import nn
        >>> model = nn.Linear(2, 2)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = evostep.Evolved(base, evostep.OpenAIES(0.1))
        >>> batches = [(torch.randn(64, 2), torch.randint(2, (64,)))]
        >>> len(evolve(optimizer, evostep.Fitness(model, batches, "accuracy"), 3))
        3
    """
    found = find_evolved(optimizer)
    if group_size() > 1 and hasattr(found.base, "consolidate_state_dict"):
        raise InputError(
            f"{type(found.base).__name__} shards its state over processes, which cannot be "
            "evolved: use the optimizer that it shards"
        )

    def tell(record: Record) -> object:
        if not is_first():
            return None
        for tracker in trackers:
            tracker.generation(record)
        return on_generation(record) if on_generation is not None else None

    records = found.evolve(fitness, generations, on_generation=tell, **options)
    if records and is_first():
        for tracker in trackers:
            tracker.phase(records, step)
    return records
