"""Metrics of texts: what a reader has read, beside what stands there.

A text is a row of Unicode code points, zeros after its end; or a `str`, in a list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError

SIMILARITY_SHARE = 0.1  # of the similarity of characters in `near_match`


def encode(texts: Sequence[str], length: int) -> Tensor:
    """Return texts as code points, (n, length) int64, zeros after the end; longer ones are cut.

    Example:
        >>> encode(["AB", "ABCD"], 3).tolist()
        [[65, 66, 0], [65, 66, 67]]
    """
    codes = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(codes, texts, strict=True):
        row[: len(text)] = torch.tensor([ord(c) for c in text[:length]], dtype=torch.int64)
    return codes


def decode(codes: Tensor) -> list[str]:
    """Return the texts of code points (n, length): what `encode` took.

    Example:
        >>> decode(torch.tensor([[65, 66, 0], [0, 0, 0]]))
        ['AB', '']
    """
    return ["".join(chr(c) for c in row if c) for row in codes.tolist()]


def edit_distance(a: str, b: str) -> int:
    """Return how many characters are to be put in, taken out or replaced (Levenshtein 1966).

    Example:
        >>> edit_distance("K7PD", "K1P"), edit_distance("", "AB")
        (2, 2)
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def exact_match(read: str, true: str) -> float:
    """Return 1 where every character is right, else 0."""
    return float(read == true)


def character_similarity(read: str, true: str) -> float:
    """Return 1 minus the edit distance over the longer text's length: in [0, 1].

    Example:
        >>> character_similarity("K1PD", "K7PD"), character_similarity("", "")
        (0.75, 1.0)
    """
    longest = max(len(read), len(true))
    return 1.0 - edit_distance(read, true) / longest if longest else 1.0


def near_match(read: str, true: str) -> float:
    """Return exact match plus a tenth of the similarity: of two that are wrong the nearer wins."""
    return exact_match(read, true) + SIMILARITY_SHARE * character_similarity(read, true)


@dataclass(frozen=True)
class TextMetric:
    """A metric of texts, the mean over examples; higher is better.

    Attributes:
        summary: one line.
        function: (read, true) -> the number of one example.
        span: the smallest and the largest value.
    """

    summary: str
    function: Callable[[str, str], float]
    span: tuple[float, float] = (0.0, 1.0)

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return the number of each example, (n,) float64."""
        read, true = _texts(outputs, "outputs"), _texts(targets, "targets")
        if len(read) != len(true):
            raise InputError(f"{len(read)} texts were read of {len(true)} examples: give one each")
        numbers = [self.function(r, t) for r, t in zip(read, true, strict=True)]
        return torch.tensor(numbers, dtype=torch.float64)


def _texts(texts: Any, what: str) -> list[str]:
    if isinstance(texts, Tensor) and texts.ndim == 2 and not texts.is_floating_point():
        return decode(texts)
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        return list(texts)
    got = f"{texts.dtype} {tuple(texts.shape)}" if isinstance(texts, Tensor) else type(texts)
    raise InputError(
        f"{what} are no texts ({got}): give a list of str, or code points (n, length) as "
        "evostep.scoring.texts.encode makes them"
    )


TEXT_METRICS: dict[str, TextMetric] = {
    "exact-match": TextMetric("share of texts read without an error", exact_match),
    "character-similarity": TextMetric(
        "1 minus edit distance by length, of texts", character_similarity
    ),
    "near-match": TextMetric(
        f"exact match plus {SIMILARITY_SHARE:g} times the similarity of characters",
        near_match,
        (0.0, 1.0 + SIMILARITY_SHARE),
    ),
}
