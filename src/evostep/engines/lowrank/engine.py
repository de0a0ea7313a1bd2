"""The low-rank engine: with `LowRank` noise members share every large product.

A member's matrix is W + A B^T with thin A and B ("Evolution Strategies at the Hyperscale", 2025,
https://arxiv.org/abs/2511.16652). So one product with W serves all members, and each adds a thin
correction; no member's matrix is built. What is not a matrix each member has in full.

What a forward means is left to `torch.vmap` over members: each sees its own batch, as in place,
whatever operations a model is made of. Speed comes from `ThinLayers`, within which calls of layers
are computed for all members at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evostep.engines.base import CannotScore
from evostep.engines.lowrank.interception import Layouts, Thin, ThinLayers
from evostep.engines.lowrank.rules import RULES
from evostep.engines.stacked import (
    Drawn,
    MemoryLayout,
    Own,
    Stacking,
    even,
    in_either_layout,
    is_out_of_memory,
    over_members,
    positions,
    score_in_chunks,
    why_not_stacked,
)
from evostep.engines.swap import places, swapped
from evostep.errors import reason
from evostep.genome.members import Factors, stack_factors
from evostep.genome.point import Coordinates
from evostep.scoring.batches import map_tensors, model_device
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Outcome, Pending
from evostep.spaces.workspace import Workspace

# Bytes of the largest activation of the members that are scored together: near the caches of a
# processor (measured: benchmarks/engines.py), enough to fill a GPU. Fixed: a resumed run gives the
# same bits.
_WIDEST = {"cpu": 2**23}
_WIDEST_ELSEWHERE = 2**28

# Examples (times tokens) up to which a member's full noise costs more than its corrections: a
# number of noise costs about as much as a hundred times a correction's share of a forward.
_FEW = 128


@dataclass
class _Known(MemoryLayout):
    """What is found out once: also whether convolutions have to give contiguous tensors.

    Attributes:
        chunks: shapes of the inputs -> how many members at a time.
    """

    chunks: dict[Any, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SharedProduct(Stacking):
    """Scores many members in one forward with the center's matrices and thin corrections.

    Args:
        chunk: members at a time; None: so many that the largest activation has 8 MB (on a GPU,
            256 MB), from the shapes of the examples.

    Raises:
        ValueError: a chunk below 1.

    Example:
        >>> SharedProduct(chunk=16).chunk
        16
    """

    name: ClassVar[str] = "lowrank"
    _known: _Known = field(default_factory=_Known, init=False, repr=False, compare=False)

    def refusal(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> str | None:
        """Return why members cannot share a product."""
        space, genome = workspace.space, workspace.genome
        if not space.holds_weights or space.moves_buffers:
            return f"members of {space!r} are not weights"
        matrices = [name for name in _moved(workspace) if genome.center[name].dim() >= 2]
        if not matrices:
            return "no matrix moves: members have nothing of low rank"
        if stack_factors(members[:1], matrices[0]) is None:
            return "members have no factors: the strategy needs noise=LowRank(rank)"
        return why_not_stacked(evaluator)

    def pays(self, workspace: Workspace, evaluator: Evaluator) -> bool:
        """Return whether drawing members' full noise would cost more than the corrections do."""
        assert evaluator.examples is not None, "begin() comes first"
        return sum(positions(inputs) for inputs, _ in evaluator.examples) <= _FEW

    def score(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> list[Outcome]:
        """Score all members, a chunk at a time; the weights in the model are not written."""
        assert isinstance(evaluator.fitness, Fitness)
        assert evaluator.examples is not None
        fitness, examples = evaluator.fitness, evaluator.examples
        model = _Shared(workspace, fitness, self._known)

        most = self.chunk or self._members_at_once(members, model, evaluator)
        drawn = Drawn(members, model.stack)

        def score(some: Sequence[Coordinates]) -> list[Pending | Exception]:
            own = drawn.take(some)
            return in_either_layout(
                evaluator,
                lambda: fitness.score_stacked(lambda x: model(own, x), len(some), examples),
            )

        return score_in_chunks(members, evaluator, even(len(members), most), score)

    def _members_at_once(
        self, members: Sequence[Coordinates], model: _Shared, evaluator: Evaluator
    ) -> int:
        """Send one member's largest batch forward to see how wide it gets, once for its shapes."""
        assert evaluator.examples is not None
        assert isinstance(evaluator.fitness, Fitness)
        sizes = [_shapes(inputs) for inputs, _ in evaluator.examples]
        largest = max(range(len(sizes)), key=lambda i: sum(map(torch.Size.numel, sizes[i])))
        if sizes[largest] not in self._known.chunks:
            inputs, _ = evaluator.examples.batches[largest]
            own = model.stack(members[:1])
            with evaluator.unchanged(), torch.no_grad(), evaluator.fitness.scoring():
                in_either_layout(evaluator, lambda: model(own, inputs))
            device = model_device(evaluator.fitness.model).type
            room = _WIDEST.get(device, _WIDEST_ELSEWHERE)
            self._known.chunks[sizes[largest]] = max(1, room // max(1, model.widest, own.nbytes))
        return self._known.chunks[sizes[largest]]

    def close(self) -> None:
        """Forget the sizes of the examples."""
        self._known.chunks.clear()


def _moved(workspace: Workspace) -> list[str]:
    """Return the names of the tensors that differ between members."""
    return [name for name in workspace.live if workspace.genome.sigma[name] != 0]


def _shapes(inputs: Any) -> tuple[torch.Size, ...]:
    found: list[torch.Size] = []
    map_tensors(inputs, lambda tensor: found.append(tensor.shape))
    return tuple(found)


class _Shared:
    """A fitness's model as a function of what members have of their own."""

    def __init__(self, workspace: Workspace, fitness: Fitness, known: _Known) -> None:
        self.widest = 0
        self._workspace = workspace
        self._fitness = fitness
        self._known = known
        self._layouts = Layouts()
        self._places = places(fitness.model, workspace.live)

    def stack(self, members: Sequence[Coordinates]) -> Own:
        """Draw the factors of matrices, and all other tensors in full."""
        live = self._workspace.live
        thin: dict[str, Factors] = {}
        whole: list[str] = []
        for name in _moved(self._workspace):
            found = stack_factors(members, name) if live[name].dim() >= 2 else None
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
        return Own(thin, {name: t.to(live[name].dtype) for name, t in stacked.items()})

    def __call__(self, own: Own, inputs: Any) -> Any:
        """Return the outputs of all members, with a leading dimension of members."""
        try:
            return self._forward(own, inputs)
        except CannotScore:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._known.check(error)
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
                contiguous=self._known.contiguous,
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
