"""What a cross-fitted procedure hands to its judge, whatever it evolved."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class CrossFit:
    """Outputs by which examples are judged, and what they are of.

    Attributes:
        outputs: (3, n, C) by which each example is judged: of the checkpoint, of the best simple
            start, of the whole procedure; each from what has not seen the example.
        final: (2, n, C) of start and procedure as fitted on all examples, about the same examples.
        start: the best simple start, by name.
        chosen: what was chosen on all examples.
        chosen_by_fold: what was chosen for each judging fold.
        evaluations: how often something was scored.
        biases: (2, C) of start and procedure, where they are decisions.
        overstated: (2,) by how much the folds flatter the gains of start and procedure.
    """

    outputs: Tensor
    final: Tensor
    start: str
    chosen: str
    chosen_by_fold: tuple[str, ...]
    evaluations: int
    biases: Tensor | None = None
    overstated: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
