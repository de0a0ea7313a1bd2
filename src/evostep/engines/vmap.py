"""Many small members at once: `torch.func.vmap` over a functional call of the model.

A small network spends its time in calls, not in arithmetic: a population of them as one batched
product is several times faster. For a large one the copies of the weights cost more than they save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from evostep.engines.base import CannotScore, Session
from evostep.engines.linear import LinearOfMembers
from evostep.engines.stacked import (
    Drawn,
    MemoryLayout,
    Own,
    Stacking,
    even,
    free_bytes,
    in_either_layout,
    over_members,
    positions,
    score_in_chunks,
    why_not_stacked,
)
from evostep.engines.swap import SwappedOut, places, swapped
from evostep.genome.point import Coordinates, as_weights
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.placing import model_device
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace

# Weights and activations of the members that are scored together, in numbers: enough to hide the
# calls' overhead, few enough to stay near the caches. Fixed: a resumed run gives the same bits.
_NUMBERS_AT_ONCE = 2**21
# Multiplications of one member on all examples above which one member at a time is as fast (see
# benchmarks/engines.py).
_SMALL = 2**25


@dataclass(frozen=True)
class Vmap(Stacking):
    """Scores many members in one batched forward.

    Args:
        chunk: members at a time; None: what 8 MB hold, and a quarter of the free memory.

    Raises:
        ValueError: a chunk below 1.

    Example:
        >>> Vmap(chunk=32).chunk
        32
    """

    name: ClassVar[str] = "vmap"

    def open(self, workspace: Workspace, evaluator: Evaluator) -> Batched:
        """Start to work for one phase."""
        return Batched(self, workspace, evaluator)


class Batched(Session[Vmap]):
    """Scores many members in one batched forward; the weights in the model are not written."""

    def __init__(self, engine: Vmap, workspace: Workspace, evaluator: Evaluator) -> None:
        super().__init__(engine, workspace, evaluator)
        self._layout = MemoryLayout()

    def refusal(self, round: Round, members: Sequence[Coordinates]) -> str | None:
        """Return why members cannot be stacked."""
        return why_not_stacked(self.evaluator, self.workspace)

    def pays(self, round: Round) -> bool:
        """Return whether members are so small that this is faster than one after the other."""
        fitness = self.evaluator.fitness
        assert isinstance(fitness, Fitness), "refusal() comes first"
        assert round.examples is not None, "a Fitness has examples"
        if any(isinstance(module, _ConvNd | nn.RNNBase) for module in fitness.model.modules()):
            return False  # batched over weights these are grouped or unrolled: slower
        matrices = sum(p.numel() for p in fitness.model.parameters() if p.dim() >= 2)
        rows = sum(positions(inputs) for inputs, _ in round.examples.batches)
        return matrices * rows <= _SMALL

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Score all members, a chunk at a time."""
        evaluator, workspace = self.evaluator, self.workspace
        fitness, live = evaluator.fitness, workspace.live
        assert isinstance(fitness, Fitness)
        where = places(fitness.model, live)
        if not where:
            raise CannotScore("the model holds none of the tensors that move")

        def stack(some: Sequence[Coordinates]) -> Own:
            stacked = workspace.space.stack(some, where)
            return Own({}, {name: as_weights(t, live[name]) for name, t in stacked.items()})

        drawn = Drawn(members, stack, sum(live[name].nbytes for name in where))
        unused = SwappedOut({name: live[name] for name in where})

        def score(some: Sequence[Coordinates]) -> list[Scores]:
            weights = drawn.take(some).whole

            def forward(inputs: Any) -> Any:
                def one(own: dict[str, Tensor]) -> Any:
                    faster = LinearOfMembers(own.values(), contiguous=self._layout.contiguous)
                    with swapped(where, own), unused, faster:
                        return fitness.apply(fitness.model, inputs, None)[0]

                try:
                    return over_members(one, weights)
                except RuntimeError as error:
                    self._layout.check(error)
                    raise

            return in_either_layout(
                evaluator, round, lambda: evaluator.score_stacked(round, forward, len(some))
            )

        chunk = self.engine.chunk or even(len(members), members_at_once(live, fitness, round))
        return score_in_chunks(members, evaluator, round, chunk, score)


def members_at_once(live: Mapping[str, Tensor], fitness: Fitness, round: Round) -> int:
    """Return how many members' weights and activations of a layer are near `_NUMBERS_AT_ONCE`."""
    assert round.examples is not None, "a Fitness has examples"
    weights = sum(tensor.numel() for tensor in live.values())
    width = max((len(p) for p in fitness.model.parameters() if p.dim() >= 2), default=1)
    rows = max((positions(inputs) for inputs, _ in round.examples.batches), default=1)
    numbers = weights + 2 * width * rows  # what a layer reads and writes
    free = free_bytes(model_device(fitness.model)) // 16  # a quarter, of 4 bytes a number
    return max(1, min(_NUMBERS_AT_ONCE, free) // numbers)
