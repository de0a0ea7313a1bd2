"""Acceptance: when is a new center truly better than its parent?

`RULES` is the table, by the names of the command line: a new rule is one file and one row.
"""

from evostep.acceptance.base import Always, Every, Improves, Rule
from evostep.acceptance.ladder import Ladder
from evostep.acceptance.paired import PairedTest

__all__ = ["RULES", "Always", "Every", "Improves", "Ladder", "PairedTest", "Rule"]

RULES: dict[str, Rule] = {
    "improves": Improves(),
    "always": Always(),
    "improves-phase": Improves(every="phase"),
    "mcnemar": PairedTest(kind="mcnemar"),
    "t": PairedTest(kind="t"),
    "permutation": PairedTest(kind="permutation"),
    "ladder": Ladder(),
}
