"""Rules by name: what ``--accept`` chooses among."""

from __future__ import annotations

from evostep.acceptance.base import Always, Improves, Rule
from evostep.acceptance.ladder import Ladder
from evostep.acceptance.paired import PairedTest

RULES: dict[str, Rule] = {
    "improves": Improves(),
    "always": Always(),
    "improves-phase": Improves(every="phase"),
    "mcnemar": PairedTest(kind="mcnemar"),
    "t": PairedTest(kind="t"),
    "permutation": PairedTest(kind="permutation"),
    "ladder": Ladder(),
}
