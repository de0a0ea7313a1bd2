"""Evolution's state within what torch.distributed.checkpoint takes of an optimizer.

That is "state" and "param_groups" alone; what it finds there it loads back. So evolution's state
goes with the first group, in one piece of bytes: the keys of a dictionary would have to be there
when it is loaded.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import torch


def asked_by_checkpoint() -> bool:
    """Return whether the method that asks was called by torch.distributed.checkpoint."""
    frame = sys._getframe(2)  # whoever called the method that asks
    return str(frame.f_globals.get("__name__", "")).startswith("torch.distributed.checkpoint")


def packed(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with evolution's part as bytes in the first parameter group."""
    piece = io.BytesIO()
    torch.save(state["evolution"], piece)
    first, *others = state["param_groups"]
    groups = [{**first, "evolution": piece.getvalue()}, *others]
    return {"state": state["state"], "param_groups": groups}


def unpacked(state: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return a base's state dict, and evolution's from where it is; None where there is none."""
    base = {key: value for key, value in state.items() if key != "evolution"}
    evolution = state.get("evolution")
    groups = base.get("param_groups", ())
    if any("evolution" in group for group in groups):
        base["param_groups"] = [dict(group) for group in groups]
        pieces = [group.pop("evolution", None) for group in base["param_groups"]]
        piece = next(piece for piece in pieces if piece is not None)
        evolution = torch.load(io.BytesIO(piece), weights_only=True)
    return base, evolution
