"""The plain engine: write a member into the model, score it, go on; at the end restore the center.

One detached copy of the center and, for a moment, the noise of one tensor: memory does not depend
on the population. Every other engine must agree with this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from evostep.engines.base import Judge, Outcome, Workspace
from evostep.spaces.base import Coordinates


def inplace(members: Sequence[Coordinates], workspace: Workspace, judge: Judge) -> list[Outcome]:
    """Score each member; the weights are the center's again afterwards, whatever is raised."""
    outcomes = []
    try:
        for member in members:
            workspace.write(member)
            outcomes.append(judge.attempt())
    finally:
        workspace.restore()
    return outcomes
