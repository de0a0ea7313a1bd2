"""What every source of data returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Part = tuple[Tensor, Tensor]
"""Images `(n, c, h, w)` uint8, and their targets: classes `(n,)` or texts `(n, length)`, int64.

Texts are code points, as `evostep.scoring.texts.encode` makes them.
"""


@dataclass(frozen=True, eq=False)
class Source:
    """Images from one source, before they are split.

    Attributes:
        title: the name for people, in tables and figures.
        train: images to split.
        test: the official test set, or None where there is none.
        classes: the names of the classes; targets are below their number. Empty: they are texts.
        validation: the official validation set, or None where there is none.
        skipped: the files that were bad and left out, each with the reason.
    """

    title: str
    train: Part
    test: Part | None
    classes: Sequence[str]
    validation: Part | None = None
    skipped: Sequence[str] = ()
