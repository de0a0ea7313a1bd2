"""The low-rank engine: with `LowRank` noise members share every large product.

A member's matrix is W + A B^T with thin A and B ("Evolution Strategies at the Hyperscale", 2025,
https://arxiv.org/abs/2511.16652). So one product with W serves all members, and each adds a thin
correction; no member's matrix is built. What is not a matrix each member has in full.

What a forward means is left to `torch.vmap` over members: each sees its own batch, as in place,
whatever operations a model is made of. Speed comes from
`ThinLayers`, within which calls of layers are computed for all members at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from evostep.engines.lowrank.session import Session, moved
from evostep.engines.stacked import Stacking, positions, why_not_stacked
from evostep.genome.members import stack_factors
from evostep.genome.point import Coordinates
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.scores import Outcome
from evostep.spaces.workspace import Workspace

# Examples (times tokens) up to which a member's full noise costs more than its corrections: a
# number of noise costs about as much as a hundred times a correction's share of a forward.
_FEW = 128


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
    _session: Session = field(default_factory=Session, init=False, repr=False, compare=False)

    def refusal(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> str | None:
        """Return why members cannot share a product."""
        space, genome = workspace.space, workspace.genome
        if not space.holds_weights or space.moves_buffers:
            return f"members of {space!r} are not weights"
        matrices = [name for name in moved(workspace) if genome.center[name].dim() >= 2]
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
        return self._session.score(members, workspace, evaluator, self.chunk)

    def close(self) -> None:
        """Forget the sizes of the examples."""
        self._session.chunks.clear()
