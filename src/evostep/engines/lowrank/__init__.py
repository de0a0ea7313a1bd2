"""Low rank: one product of all members with the center's weights, and thin corrections."""

from evostep.engines.lowrank.engine import SharedProduct

__all__ = ["SharedProduct"]
