"""Members that share the center's matrices, scored in one forward; and what is found out by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evostep.engines.base import CannotScore, Session
from evostep.engines.lowrank.interception import Layouts, Thin, ThinLayers
from evostep.engines.lowrank.rules import RULES
from evostep.engines.stacked import (
    Drawn,
    MemoryLayout,
    Own,
    Stacking,
    even,
    in_either_layout,
    over_members,
    positions,
    score_in_chunks,
    why_not_stacked,
)
from evostep.engines.swap import places, swapped
from evostep.errors import is_out_of_memory, reason
from evostep.genome.members import Factors, around, stack_factors
from evostep.genome.point import Coordinates, as_weights
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.nests import leaves
from evostep.scoring.placing import model_device
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace

# Bytes of the largest activation of the members that are scored together: near the caches of a
# processor (measured: benchmarks/engines.py), enough to fill a GPU. Fixed: a resumed run gives the
# same bits.
_WIDEST = {"cpu": 2**23}
_WIDEST_ELSEWHERE = 2**28


# Examples (times tokens) up to which a member's full noise costs more than its corrections: a
# number of noise costs about as much as a hundred times a correction's share of a forward.
_FEW = 128


class Sharing(Session[Stacking]):
    """Members share products in one forward; the weights in the model are not written."""

    def __init__(self, engine: Stacking, workspace: Workspace, evaluator: Evaluator) -> None:
        super().__init__(engine, workspace, evaluator)
        self._memory = MemoryLayout()
        self._chunks: dict[Any, int] = {}  # shapes of the inputs -> how many members at a time

    def refusal(self, round: Round, members: Sequence[Coordinates]) -> str | None:
        """Return why members cannot share a product."""
        space, genome = self.workspace.space, self.workspace.genome
        if not space.holds_weights or space.moves_buffers:
            return f"members of {space!r} are not weights"
        matrices = [name for name in _moved(self.workspace) if genome.center[name].dim() >= 2]
        if not matrices:
            return "no matrix moves: members have nothing of low rank"
        if all(stack_factors(members[:1], name) is None for name in matrices):
            return "members have no factors: the strategy needs noise=LowRank(rank)"
        if not around(members[0], genome):
            return "members lie around another point than the center"
        return why_not_stacked(self.evaluator, self.workspace)

    def pays(self, round: Round) -> bool:
        """Return whether drawing members' full noise would cost more than the corrections do."""
        assert round.examples is not None, "a Fitness has examples"
        return sum(positions(inputs) for inputs, _ in round.examples.batches) <= _FEW

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Score all members, a chunk at a time."""
        evaluator = self.evaluator
        assert isinstance(evaluator.fitness, Fitness)
        model = _Shared(self.workspace, evaluator.fitness, self._memory)
        most = self.engine.chunk or self._members_at_once(round, members, model)
        drawn = Drawn(members, model.stack)

        def score(some: Sequence[Coordinates]) -> list[Scores]:
            own = drawn.take(some)
            return in_either_layout(
                evaluator,
                round,
                lambda: evaluator.score_stacked(round, lambda x: model(own, x), len(some)),
            )

        return score_in_chunks(members, evaluator, round, even(len(members), most), score)

    def _members_at_once(self, round: Round, members: Sequence[Coordinates], model: _Shared) -> int:
        """Send one member's largest batch forward to see how wide it gets, once for its shapes."""
        evaluator, examples = self.evaluator, round.examples
        assert examples is not None
        assert isinstance(evaluator.fitness, Fitness)
        sizes = [_shapes(inputs) for inputs, _ in examples.batches]
        largest = max(range(len(sizes)), key=lambda i: sum(map(torch.Size.numel, sizes[i])))
        if sizes[largest] not in self._chunks:
            inputs, _ = examples[largest]
            own = model.stack(members[:1])
            with evaluator.unchanged(round), torch.no_grad(), evaluator.fitness.scoring():
                in_either_layout(evaluator, round, lambda: model(own, inputs))
            device = model_device(evaluator.fitness.model).type
            room = _WIDEST.get(device, _WIDEST_ELSEWHERE)
            self._chunks[sizes[largest]] = max(1, room // max(1, model.widest, own.nbytes))
        return self._chunks[sizes[largest]]

    def close(self) -> None:
        """Forget the sizes of the examples."""
        self._chunks.clear()


def _moved(workspace: Workspace) -> list[str]:
    """Return the names of the tensors that differ between members."""
    return [name for name in workspace.live if workspace.genome.sigma[name] != 0]


def _shapes(inputs: Any) -> tuple[torch.Size, ...]:
    return tuple(leaf.shape for leaf in leaves(inputs) if isinstance(leaf, Tensor))


class _Shared:
    """A fitness's model as a function of what members have of their own."""

    def __init__(self, workspace: Workspace, fitness: Fitness, memory: MemoryLayout) -> None:
        self.widest = 0
        self._workspace = workspace
        self._fitness = fitness
        self._memory = memory
        self._layouts = Layouts()
        self._places = places(fitness.model, workspace.live)

    def stack(self, members: Sequence[Coordinates]) -> Own:
        """Draw the factors of matrices, and all other tensors in full."""
        live, center = self._workspace.live, self._workspace.genome.center
        thin: dict[str, Factors] = {}
        whole: list[str] = []
        for name in _moved(self._workspace):
            matrix = live[name].dim() >= 2 and live[name].shape == center[name].shape
            found = stack_factors(members, name) if matrix else None
            if found is None:
                whole.append(name)
                continue
            A, B = found
            if live[name].numel() <= A[0].numel() + B[0].numel():
                whole.append(name)  # nothing is gained, and then any operation can use it
            else:
                thin[name] = A.to(live[name].dtype), B.to(live[name].dtype)
        whole = [name for name in whole if name in self._places]
        stacked = self._workspace.space.stack(members, whole)
        return Own(thin, {name: as_weights(t, live[name]) for name, t in stacked.items()})

    def __call__(self, own: Own, inputs: Any) -> Any:
        """Return the outputs of all members, with a leading dimension of members."""
        try:
            return self._forward(own, inputs)
        except CannotScore:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._memory.check(error)
            raise CannotScore(f"{self._where(error)}: {reason(error)}") from error

    def _forward(self, own: Own, inputs: Any) -> Any:
        live, fitness = self._workspace.live, self._fitness
        replaced = {name: live[name] for name in own.whole}

        def one(thin: Mapping[str, Factors], whole: Mapping[str, Tensor]) -> Any:
            layers = ThinLayers(
                [Thin(name, live[name], A, B) for name, (A, B) in thin.items()],
                replaced,
                RULES,
                self._layouts,
                contiguous=self._memory.contiguous,
            )
            with swapped(self._places, whole), layers:
                outputs = fitness.apply(fitness.model, inputs, None)[0]
            self.widest = max(self.widest, layers.widest)
            return outputs

        return over_members(one, own.thin, own.whole)

    def _where(self, error: Exception) -> str:
        """Name the innermost module of the model in which an error was raised."""
        paths = {module: path for path, module in self._fitness.model.named_modules()}
        found, frame = "", error.__traceback__
        while frame is not None:
            module = frame.tb_frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                found = paths.get(module, found)
            frame = frame.tb_next
        return f"layer {found!r}" if found else "the model"
