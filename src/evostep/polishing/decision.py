"""A decision: biases on outputs, as a file, as numbers, or folded into a network's last layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evostep.polishing.problem import Kind

FORMAT = 1
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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


def find_output_layer(model: nn.Module, forward: Callable[[], Tensor]) -> nn.Module | None:
    """Return the layer whose outputs are the network's own, or None where something follows it.

    Args:
        model: the network.
        forward: sends one batch forward, returns its outputs.
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _LAYERS):
                handle = module.register_forward_hook(
                    lambda module, _, outputs: seen.append((module, outputs))
                )
                stack.callback(handle.remove)
        outputs = forward()
    for module, own in reversed(seen):
        if own.numel() == outputs.numel() and torch.equal(own.flatten(), outputs.flatten()):
            calls = sum(other is module for other, _ in seen)
            return module if calls == 1 else None
    return None


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


class Moved:
    """Evolved weights in a network, with biases in its last layer; can be taken out again.

    Args:
        live: the network's tensors.
        before: what they were.
        after: what they become.
        layer: the last layer, of the network as it becomes; None: no bias is added.
        bias: (C,) that is added there.
    """

    def __init__(
        self,
        live: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        layer: nn.Module | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self._live, self._before, self._after = live, before, after
        self._layer, self._bias = layer, bias
        self._folded: Folded | None = None
        self.applied = False

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(weights[name])

    def apply(self) -> None:
        """Put the evolved weights in; nothing where they are in already."""
        if self.applied:
            return
        self._write(self._after)
        if self._layer is not None and self._bias is not None:
            self._folded = Folded(self._layer, self._bias)
            self._folded.apply()
        self.applied = True

    def revert(self) -> None:
        """Put the network back, bit for bit."""
        if not self.applied:
            return
        if self._folded is not None:
            self._folded.revert()
        self._write(self._before)
        self.applied = False
