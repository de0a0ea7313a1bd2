"""A decision: biases on outputs, as a file, as numbers, or folded into a network's last layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evostep.interrupts import finish
from evostep.polishing.problem import Problem
from evostep.scoring.outputs import Kind

FORMAT = 1
SCALED = 2  # which a reader of the first must not take for it
OF_PROBABILITIES = 3  # likewise


@dataclass(frozen=True)
class Decision:
    """What is added to outputs before the largest is taken, or what lies above zero.

    Attributes:
        kind: ``"classes"``, ``"binary"`` or ``"labels"``.
        bias: (C,) float64.
        metric: what it was chosen by.
        scale: what outputs are multiplied by before.
        scores: what the model gives, ``"logits"`` or ``"probabilities"``: of these the logarithm
            (of a label's the logit) is what the bias is added to.
        classes: names of classes (both of a binary label) or labels; empty: not known.
    """

    kind: Kind
    bias: Tensor
    metric: str
    scale: float = 1.0
    scores: str = "logits"
    classes: tuple[str, ...] = ()

    def adjusted(self, outputs: Tensor) -> Tensor:
        """Return outputs (..., C) under it: logits, also where `scores` are probabilities."""
        scaled = outputs if self.scale == 1 else outputs * self.scale
        return scaled + self.bias.to(outputs)

    def as_dict(self) -> dict[str, Any]:
        """Return what `evostep.load_decision` reads."""
        told: dict[str, Any] = {"kind": self.kind, "bias": self.bias.tolist()}
        told["metric"] = self.metric
        told |= {"classes": list(self.classes)} if self.classes else {}
        told |= {} if self.scale == 1 else {"scale": self.scale}
        if self.scores == "probabilities":
            return {"format": OF_PROBABILITIES, **told, "scores": self.scores}
        return {"format": FORMAT if self.scale == 1 else SCALED, **told}

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        part = Path(f"{path}.part")
        part.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        part.replace(path)


def make_decision(problem: Problem, numbers: Tensor, metric: str) -> Decision:
    """Return the decision of a problem's numbers, (P,): biases and, maybe, a logarithm."""
    if not problem.scaled:
        return Decision(problem.kind, numbers, metric)
    return Decision(problem.kind, numbers[:-1], metric, float(numbers[-1].exp()))


class Folded:
    """A decision in a network's last layer, which can be taken out again.

    Args:
        layer: a linear layer or a convolution with C outputs; gets a bias where it has none.
        bias: (C,) what is added.
        scale: what outputs are multiplied by before.
    """

    def __init__(self, layer: Any, bias: Tensor, scale: float = 1.0) -> None:
        self._layer = layer
        self._before: Tensor | None = None
        if self._layer.bias is not None:
            self._before = self._layer.bias.detach().clone()
        self._weight = None if scale == 1 else self._layer.weight.detach().clone()
        self._bias, self._scale = bias, scale
        self.applied = False

    @property
    def is_new(self) -> bool:
        """Whether the layer has no bias of its own."""
        return self._before is None

    @torch.no_grad()
    def apply(self) -> None:
        """Change the layer; nothing where it is changed already."""
        if not self.applied:
            finish(self._put_in)

    def _put_in(self) -> None:
        self.applied = True  # from now on there is something to take out
        weight = self._layer.weight
        if self._weight is not None:
            weight.copy_(self._weight.double() * self._scale)
        if self._before is None:
            self._layer.bias = nn.Parameter(
                self._bias.to(weight), requires_grad=weight.requires_grad
            )
        else:
            before = self._before.double() * self._scale
            self._layer.bias.copy_(before + self._bias.to(weight.device))

    @torch.no_grad()
    def revert(self) -> None:
        """Put the layer back, bit for bit."""
        if self.applied:
            finish(self._take_out)

    def _take_out(self) -> None:
        if self._weight is not None:
            self._layer.weight.copy_(self._weight)
        if self._before is None:
            self._layer.bias = None
        else:
            self._layer.bias.copy_(self._before)
        self.applied = False


class Moved:
    """Evolved weights in a network, with a decision in its last layer; can be taken out again.

    Args:
        live: the network's tensors.
        before: what they were.
        after: what they become.
        layer: the last one; None: there is no decision.
        decision: that is put in there, about the outputs of the evolved weights.
    """

    def __init__(
        self,
        live: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        layer: nn.Module | None = None,
        decision: Decision | None = None,
    ) -> None:
        self._live, self._before, self._after = live, before, after
        self._layer, self._decision = layer, decision
        self._folded: Folded | None = None
        self.applied = False

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(weights[name])

    def apply(self) -> None:
        """Put the evolved weights in; nothing where they are in already."""
        if not self.applied:
            finish(self._put_in)

    def _put_in(self) -> None:
        if self._folded is not None:  # begun before, and not finished
            self._folded.revert()
        self.applied = True  # from now on there is something to take out
        self._write(self._after)
        if self._layer is not None and self._decision is not None:
            self._folded = Folded(self._layer, self._decision.bias, self._decision.scale)
            self._folded.apply()

    def revert(self) -> None:
        """Put the network back, bit for bit."""
        if self.applied:
            finish(self._take_out)

    def _take_out(self) -> None:
        if self._folded is not None:
            self._folded.revert()
        self._write(self._before)
        self.applied = False
