"""What scoring gave: one carrier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What one scoring of a model gave.

    Attributes:
        value: the fitness, higher is better.
        per_example: (n,) float64, whose mean is `value`; None where the metric has no such thing.
        outputs: what the model gave for all examples; None unless asked for.
        targets: what `outputs` was compared with; None unless asked for.
        measure: gives the value of any (outputs, targets); None unless asked for.
    """

    value: float
    per_example: Tensor | None = None
    outputs: Any = None
    targets: Any = None
    measure: Callable[[Any, Any], float] | None = None


@dataclass(frozen=True)
class Pending:
    """Scores whose value may still be on the device: reading it would wait for it.

    Attributes:
        value: the fitness, a number or a tensor of one.
        per_example: as in `Scores`, and so are the others.
    """

    value: float | Tensor
    per_example: Tensor | None = None
    outputs: Any = None
    targets: Any = None
    measure: Callable[[Any, Any], float] | None = None

    def scores(self, value: float | None = None) -> Scores:
        """Return the scores, with the value that was read together with others', or read now."""
        value = float(self.value) if value is None else value
        return Scores(value, self.per_example, self.outputs, self.targets, self.measure)


@dataclass(frozen=True)
class Outcome:
    """What scoring one member gave: scores, or why there are none.

    Attributes:
        scores: NaN where there are none.
        error: why there are none.
        seen: on how many examples it was scored; None: on all of the generation's. With fewer,
            its value is an estimate that is below the best member's.
    """

    scores: Scores
    error: str | None = None
    seen: int | None = None

    @property
    def failed(self) -> bool:
        """Whether the fitness raised or was not finite."""
        return self.error is not None


def failure(error: Exception) -> Outcome:
    """Return the outcome of a member whose scoring raised."""
    return Outcome(Scores(math.nan), f"{type(error).__name__}: {error}")


def read(pending: Sequence[Pending | Outcome]) -> list[Outcome]:
    """Read the values of members with one transfer from the device; not finite is a failure."""
    tensors = [p.value for p in pending if isinstance(p, Pending) and isinstance(p.value, Tensor)]
    values = iter(torch.stack([t.double() for t in tensors]).tolist() if tensors else ())
    outcomes = []
    for one in pending:
        if isinstance(one, Outcome):
            outcomes.append(one)
            continue
        value = next(values) if isinstance(one.value, Tensor) else one.value
        if math.isfinite(value):
            outcomes.append(Outcome(one.scores(value)))
        else:
            outcomes.append(Outcome(Scores(math.nan), f"the fitness was {value}"))
    return outcomes
