"""Racing: members that cannot win any more are not scored on the rest of the examples."""

from evostep.engines.racing.engine import Racing

__all__ = ["Racing"]
