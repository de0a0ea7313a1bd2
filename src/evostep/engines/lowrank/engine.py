"""The low-rank engine: with `LowRank` noise members share every large product.

A member's matrix is W + A B^T with thin A and B ("Evolution Strategies at the Hyperscale", 2025,
https://arxiv.org/abs/2511.16652). So one product with W serves all members, and each adds a thin
correction; no member's matrix is built. What is not a matrix each member has in full.

What a forward means is left to `torch.vmap` over members: each sees its own batch, as in place,
whatever operations a model is made of. Speed comes from `ThinLayers`, within which calls of layers
are computed for all members at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from evostep.engines.lowrank.session import Sharing
from evostep.engines.stacked import Stacking
from evostep.scoring.evaluator import Evaluator
from evostep.spaces.workspace import Workspace


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

    def open(self, workspace: Workspace, evaluator: Evaluator) -> Sharing:
        """Start to work for one phase."""
        return Sharing(self, workspace, evaluator)
