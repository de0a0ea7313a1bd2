"""An image front end of 20 numbers, which begins as nothing: what it makes is for a reader.

Colours are mixed, each by a small symmetric kernel; shade is taken away, contrast is stretched,
tones are bent, and the image is zoomed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTRAST = 0.15  # the standard deviation of an image that is stretched in full
ZOOM = 0.2  # of the logarithms: a little moves text out of sight
WIDE = 15  # pixels, in which shade is told from text
_RING = [[3, 2, 3], [1, 0, 1], [3, 2, 3]]  # which number of a kernel stands where
_TAPS = (1.0, 2.0, 2.0, 4.0)  # in how many places


class FrontEnd(nn.Module):
    """Images `(n, 3, h, w)` in [0, 1] in, such images out; numbers of order 1.

    What the numbers do leaves an image's own brightness alone, but for `offset`: else each of them
    would have to make up for the others.

    Attributes:
        kernel: (3, 4) of each colour: the weight of the pixel itself, of its two neighbours in the
            row together, of those in the column, and of the four diagonal ones.
        colour: how much of the image's own colours is added to the mixture.
        stretch: how much of the way to one and the same contrast each image goes.
        gain: the logarithm of a contrast for all.
        offset: of the brightness.
        shade: how much of what is wide is taken away.
        bend: of tones: above 0 what is near the mean is spread.
        zoom: the logarithms of width and height, in units of `ZOOM`.
        level: weights of the colours' means in the brightness, and how much of its own each keeps;
            not among the numbers.
    """

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(3, 4))
        self.colour = nn.Parameter(torch.zeros(1))
        self.stretch = nn.Parameter(torch.zeros(1))
        self.gain = nn.Parameter(torch.zeros(1))
        self.offset = nn.Parameter(torch.zeros(1))
        self.shade = nn.Parameter(torch.zeros(1))
        self.bend = nn.Parameter(torch.zeros(1))
        self.zoom = nn.Parameter(torch.zeros(2))
        self.register_buffer("level", torch.zeros(4))
        self.begin((0.0, 0.0, 0.0), keep=True)

    @torch.no_grad()
    def begin(self, weights: Sequence[float], offset: float = 0.0, *, keep: bool = False) -> None:
        """Begin as a mixture of the colours plus an offset, or as the image itself (`keep`)."""
        for parameter in self.parameters():
            parameter.zero_()
        self.kernel[:, 0] = torch.tensor(weights)
        self.colour.fill_(float(keep))
        self.offset.fill_(offset)
        self.level.copy_(torch.tensor([*weights, float(keep)]))

    def forward(self, images: Tensor) -> Tensor:
        """Return what the reader is to see."""
        mean = images.mean((2, 3), keepdim=True)  # (n, 3, 1, 1)
        level = (mean.flatten(1) @ self.level[:3]).view(-1, 1, 1, 1) + self.level[3] * mean
        images = images - mean
        taps = self.kernel / self.kernel.new_tensor(_TAPS)
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        seen = F.conv2d(padded, taps[None, :, _RING]) + self.colour * images  # (n, 3, h, w)
        wide = F.avg_pool2d(F.pad(seen, (WIDE // 2,) * 4, mode="replicate"), WIDE, 1)
        seen = seen - self.shade * wide
        deviation = seen.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-3)
        seen = seen * (CONTRAST / deviation) ** self.stretch * self.gain.exp()
        seen = seen + self.bend * seen * (1 - 4 * seen.square()).clamp_min(0)
        return self._zoomed(seen + level + self.offset).clamp(0, 1)

    def _zoomed(self, images: Tensor) -> Tensor:
        if not bool(self.zoom.any()):
            return images
        theta = self.zoom.new_zeros(2, 3)
        theta[0, 0], theta[1, 1] = (-ZOOM * self.zoom).exp()
        grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), False)
        return F.grid_sample(images, grid, "bilinear", "border", False)
