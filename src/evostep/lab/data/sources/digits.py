"""Digits: 1,797 images of 8x8 pixels that scikit-learn carries with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from evostep.lab.data.sources.base import Source

CURE = "pip install 'evostep[lab]', whose scikit-learn carries them"


def find() -> Path | None:
    """Return where scikit-learn is, which carries the digits; None: it is not installed."""
    found = importlib.util.find_spec("sklearn")
    return None if found is None or found.origin is None else Path(found.origin).parent


def load() -> Source:
    """Load scikit-learn's digits; there is no official test set.

    Example:
        >>> images, targets = load().train
        >>> images.shape, targets.shape
        (torch.Size([1797, 1, 8, 8]), torch.Size([1797]))
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # 0..16 to 0..255
    targets = torch.from_numpy(bunch.target.astype(np.int64))
    part = (torch.from_numpy(images).unsqueeze(1), targets)
    return Source("Digits (8x8)", part, None, [str(digit) for digit in range(10)])
