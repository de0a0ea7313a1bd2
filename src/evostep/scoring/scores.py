"""Scores: the outcome of scoring a parent, a member or a candidate, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from evostep.scoring.finite import NOT_FINITE


class Scores:
    """The outcome of one scoring of a model, or why there is nothing.

    Args:
        value: the fitness, higher is better: a number, or a tensor of one that may still be on its
            way from the device. It is read when it is first asked for, or by `read` together with
            others'.
        per_example: (n,) float64, whose mean is `value`; None where the metric has no such thing.
        outputs: the model's outputs for all examples; None unless asked for.
        targets: what `outputs` was compared with; None unless asked for.
        measure: returns the value of any (outputs, targets); None unless asked for.
        error: why there is no score (the value is NaN then); None where there is one.
        finite: (1,) bool, whether the outputs were finite, where that may still be on its way; the
            value is NaN if not. None: they were.
        seen: on how many examples it was scored; None: on all of the generation's. With fewer its
            value is an estimate that is below the best member's.

    Example:
        >>> Scores(0.5, torch.tensor([1.0, 0.0])).value
        0.5
        >>> Scores.failure(RuntimeError("out of memory")).error
        'RuntimeError: out of memory'
    """

    def __init__(
        self,
        value: float | Tensor,
        per_example: Tensor | None = None,
        outputs: Any = None,
        targets: Any = None,
        measure: Callable[[Any, Any], float] | None = None,
        *,
        error: str | None = None,
        finite: Tensor | None = None,
        seen: int | None = None,
    ) -> None:
        self._value = value
        self.per_example = per_example
        self.outputs = outputs
        self.targets = targets
        self.measure = measure
        self.error = error
        self.seen = seen
        self._finite = finite

    @classmethod
    def failure(cls, error: Exception | str, *, seen: int | None = None) -> Scores:
        """Return what stands for the scores of weights whose scoring failed."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return cls(math.nan, error=text, seen=seen)

    @property
    def value(self) -> float:
        """The fitness; waits for the device if it has not been read."""
        if isinstance(self._value, Tensor):
            self._value = float(self._value)
        if math.isnan(self._value) and self._finite is not None:
            if not bool(self._finite):
                self.error = NOT_FINITE
            self._finite = None
        return self._value

    @property
    def failed(self) -> bool:
        """Whether the fitness raised or was not finite."""
        return self.error is not None

    def read_as(self, value: float) -> None:
        """Take what somebody else read of the same scoring, whose rounding may be another."""
        self._value = value

    def __repr__(self) -> str:
        return f"Scores({self.error or self._value})"


def read(scores: Sequence[Scores]) -> list[Scores]:
    """Read the values of proposed weights with one transfer; one that is not finite is a failure.

    Example:
        >>> read([Scores(torch.tensor(0.5)), Scores(math.inf)])
        [Scores(0.5), Scores(the fitness was inf)]
    """
    waiting = [one for one in scores if isinstance(one._value, Tensor)]
    if waiting:
        values = torch.stack([torch.as_tensor(one._value).double() for one in waiting]).tolist()
        for one, value in zip(waiting, values, strict=True):
            one._value = value
    return [
        one
        if math.isfinite(one.value) or one.failed
        else Scores.failure(f"the fitness was {one.value}")
        for one in scores
    ]
