"""A decision: biases on outputs, as a file, as numbers, or folded into a network's last layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evostep.polishing.problem import Kind

FORMAT = 1


@dataclass(frozen=True)
class Decision:
    """What is added to outputs before the largest is taken, or what lies above zero.

    Attributes:
        kind: ``"classes"``, ``"binary"`` or ``"labels"``.
        bias: (C,) float64.
        metric: what it was chosen by.
    """

    kind: Kind
    bias: Tensor
    metric: str

    def as_dict(self) -> dict[str, Any]:
        """Return what `evostep.load_decision` reads."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "bias": self.bias.tolist(),
            "metric": self.metric,
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        part = Path(f"{path}.part")
        part.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        part.replace(path)


class Folded:
    """A decision in the bias of a network's last layer, which can be taken out again.

    Args:
        layer: a linear layer or a convolution with C outputs; gets a bias where it has none.
        bias: (C,) what is added.
    """

    def __init__(self, layer: Any, bias: Tensor) -> None:
        self._layer = layer
        self._before: Tensor | None = None
        if self._layer.bias is not None:
            self._before = self._layer.bias.detach().clone()
        self._bias = bias
        self.applied = False

    @property
    def is_new(self) -> bool:
        """Whether the layer has no bias of its own."""
        return self._before is None

    @torch.no_grad()
    def apply(self) -> None:
        """Add the biases; nothing where they are in already."""
        if self.applied:
            return
        weight = self._layer.weight
        if self._before is None:
            self._layer.bias = nn.Parameter(
                self._bias.to(weight), requires_grad=weight.requires_grad
            )
        else:
            self._layer.bias.copy_(self._before.double() + self._bias.to(weight.device))
        self.applied = True

    @torch.no_grad()
    def revert(self) -> None:
        """Put the layer back, bit for bit."""
        if not self.applied:
            return
        if self._before is None:
            self._layer.bias = None
        else:
            self._layer.bias.copy_(self._before)
        self.applied = False
