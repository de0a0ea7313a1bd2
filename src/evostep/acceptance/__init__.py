"""Acceptance: when is a new center truly better than its parent?"""

from evostep.acceptance.base import Always, Every, Improves, Rule
from evostep.acceptance.ladder import Ladder
from evostep.acceptance.paired import PairedTest

__all__ = ["Always", "Every", "Improves", "Ladder", "PairedTest", "Rule"]
