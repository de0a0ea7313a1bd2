"""Prefix: what comes before the first moved weight is computed once, and replayed."""

from evostep.engines.prefix.engine import Prefix

__all__ = ["Prefix"]
