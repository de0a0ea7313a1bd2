"""When to evolve: alternate epochs of gradient descent with generations of evolution."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alternate:
    """Alternate `gradient` epochs of gradient descent with `evolution` generations, from `start`.

    The loop of "Spartan neural network training" (2020): N epochs of SGD, K rounds of evolution,
    keep the survivor, repeat.

    Args:
        gradient: epochs of gradient descent between two phases of evolution, at least 1.
        evolution: generations in a phase, at least 0.
        start: epochs of gradient descent alone before the alternation begins, at least 0.

    Raises:
        ValueError: a number below its least value.

    Example:
        >>> schedule = Alternate(gradient=2, evolution=5, start=3)
        >>> [schedule.generations(epoch) for epoch in range(8)]
        [0, 0, 0, 0, 5, 0, 5, 0]
    """

    gradient: int = 1
    evolution: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        for field, least in (("gradient", 1), ("evolution", 0), ("start", 0)):
            value = getattr(self, field)
            if value < least:
                raise ValueError(f"{field} must be at least {least}, got {value}")

    def generations(self, epoch: int) -> int:
        """Return how many generations follow the gradient steps of `epoch` (counted from 0)."""
        past = epoch - self.start + 1
        return self.evolution if past > 0 and past % self.gradient == 0 else 0
