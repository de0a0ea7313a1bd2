"""The model `text-reader`: a front end that can be searched, before a reader that is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from evostep.lab.reading.filters import COLOURS, OPERATIONS, filtered, in_space
from evostep.lab.reading.front_end import FrontEnd
from evostep.lab.reading.reader import recognise
from evostep.scoring.texts import encode

LONGEST = 16  # characters that are kept of what was read
_COLOURS, _OPERATIONS = tuple(COLOURS), tuple(OPERATIONS)
_BEST_COLOURS, _BEST_OPERATIONS = 2, 4  # of which combinations are tried


class TextReader(nn.Module):
    """Images `(n, 3, 48, w)` in [0, 1] to texts, as code points `(n, 16)` int64.

    The front end's numbers are the parameters. Which colours it begins with, and which usual
    filters stand between it and the reader, are buffers: `tune` sets them.

    Attributes:
        tunings: how often `tune` scores at most.
    """

    filters: Tensor
    tunings = len(COLOURS) + _BEST_COLOURS * (len(OPERATIONS) - 1) + _BEST_OPERATIONS * 3

    def __init__(self) -> None:
        super().__init__()
        self.front_end = FrontEnd()
        self.register_buffer("filters", torch.zeros(3, dtype=torch.int64))

    @property
    def choice(self) -> tuple[str, str, str]:
        """The colours with which the front end began, and two operations after it."""
        colour, first, second = self.filters.tolist()
        return _COLOURS[colour], _OPERATIONS[first], _OPERATIONS[second]

    def choose(self, colour: str, first: str = "none", second: str = "none") -> None:
        """Begin with these colours, and put these operations before the reader."""
        chosen = COLOURS[colour]
        self.front_end.begin(chosen.weights, chosen.offset, keep=chosen.keep)
        indices = (_COLOURS.index(colour), _OPERATIONS.index(first), _OPERATIONS.index(second))
        self.filters.copy_(torch.tensor(indices))

    def prepared(self, images: Tensor) -> Tensor:
        """Return what the reader sees of images."""
        colour, *operations = self.choice
        return filtered(self.front_end(in_space(images, COLOURS[colour].space)), operations)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the reader reads."""
        return encode(recognise(self.prepared(images).detach()), LONGEST).to(images.device)

    def tune(self, score: Callable[[], float]) -> None:
        """Keep the best of the usual filters: a colour, then an operation after it, then two.

        Args:
            score: of the model as it stands, higher is better; called `tunings` times at most.
        """
        scores: dict[tuple[str, str, str], float] = {}

        def best(n: int, *, operations: int) -> Sequence[tuple[str, str, str]]:
            tried = [c for c in scores if sum(o != "none" for o in c[1:]) == operations]
            return sorted(tried, key=lambda choice: -scores[choice])[:n]

        def try_out(choice: tuple[str, str, str]) -> None:
            if choice not in scores:
                self.choose(*choice)
                scores[choice] = score()

        for colour in COLOURS:
            try_out((colour, "none", "none"))
        for colour, _, _ in best(_BEST_COLOURS, operations=0):
            for operation in _OPERATIONS[1:]:
                try_out((colour, operation, "none"))
        good = best(_BEST_OPERATIONS, operations=1)
        for colour, first, _ in good:
            for _, second, _ in good:
                if second != first:
                    try_out((colour, first, second))
        self.choose(*max(scores, key=lambda choice: scores[choice]))
