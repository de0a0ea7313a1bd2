"""Gradient descent alone."""

from __future__ import annotations

from evostep.lab.arms.procedures.base import Procedure
from evostep.lab.arms.seed_run import Counters


class Plain(Procedure):
    """Gradient descent alone: what the controls do."""

    def epoch(self, counters: Counters, budget: int | None) -> None:
        """Train for one epoch."""
        self.learner.descend(self.arm.label, counters, budget)
