"""Procedures: how a run trains from the trunk on. One procedure, one file, and a row in the table.

A procedure owns its epoch, what follows it, the model that it ends with, its state, and its cost.
"""

from __future__ import annotations

from evostep.lab.arms.procedures.alternating import Alternating
from evostep.lab.arms.procedures.averaging import Averaging
from evostep.lab.arms.procedures.base import Procedure
from evostep.lab.arms.procedures.experts import Experts
from evostep.lab.arms.procedures.moving_average import MovingAverage
from evostep.lab.arms.procedures.plain import Plain
from evostep.lab.arms.procedures.population import Population
from evostep.lab.arms.procedures.soup import GreedySoup, UniformSoup
from evostep.lab.arms.procedures.standing import Calibrated, Tuning, Untouched

__all__ = ["PROCEDURES"]

PROCEDURES: dict[str, type[Procedure]] = {
    "plain": Plain,
    "averaging": Averaging,
    "moving-average": MovingAverage,
    "uniform-soup": UniformSoup,
    "greedy-soup": GreedySoup,
    "alternating": Alternating,
    "population": Population,
    "untouched": Untouched,
    "calibrated": Calibrated,
    "tuning": Tuning,
    "experts": Experts,
}
