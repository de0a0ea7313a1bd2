"""Reliability: whether a prediction made with probability p is right in a share p of the cases."""

from __future__ import annotations

import torch
from torch import Tensor

from evostep.scoring.confusion import tally


def calibration_error(
    confidence: Tensor, right: Tensor, weights: Tensor | None = None, *, bins: int = 15
) -> Tensor:
    """Return the expected calibration error of Guo et al. 2017, https://arxiv.org/abs/1706.04599.

    The mean over examples of the distance, within their bin, of mean confidence and share of right
    predictions. Bins are of equal width; each has its lower end, the last one both.

    Args:
        confidence: (n,) or (n, L), the probability of what is predicted.
        right: the same shape, zeros and ones.
        weights: what each counts, broadcast against the same shape; None: 1.
        bins: how many.

    Returns:
        One number, float64 in [0, 1], lower is better; of several columns their mean. NaN where
        nothing counts.

    Example:
        >>> calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([1, 0])).item()
        0.25
    """
    confidence = confidence.double().reshape(len(confidence), -1)
    columns = confidence.shape[1]
    each = torch.ones_like(confidence) if weights is None else weights.double()
    each = each.reshape(len(each), -1).expand(confidence.shape)
    cells = (confidence * bins).long().clamp(0, bins - 1)
    cells = (cells + bins * torch.arange(columns, device=cells.device)).flatten()
    gaps = (each * (confidence - right.double().reshape(confidence.shape))).flatten()
    found = tally(cells, gaps, columns * bins).view(columns, bins).abs().sum(1)
    return (found / each.sum(0)).nanmean()
