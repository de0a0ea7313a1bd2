"""A network whose weights are a start plus task vectors, each times a coefficient by layer.

Ilharco et al. 2023, "Editing Models with Task Arithmetic", https://arxiv.org/abs/2212.04089; a
coefficient for each layer as in Yang et al. 2024, "AdaMerging", https://arxiv.org/abs/2310.02575.
The tasks are disjoint groups of classes, as in Stoica et al. 2024, "ZipIt!",
https://arxiv.org/abs/2305.03053. Normalisation is by groups of channels, so that a mixture has no
statistics to estimate again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

EXPERTS = 2
_GRID = 20  # coefficients of task arithmetic that are tried: 0.05, 0.10, ..., 1.00


class Merged(nn.Module):
    """W = W_start + sum_k c_k (W_k - W_start), with c for each layer.

    Attributes:
        net: holds W_start: what fine-tuning moves.
        coefficients: layer -> c, (K,); at the beginning 1/K, the uniform average.
        vectors: of each parameter of `net`, (K, ...): W_k - W_start. Buffers.
        tunings: how often `tune` scores at most.

    Example:
        >>> merged = Merged(nn.Sequential(OrderedDict(head=nn.Linear(1, 1, bias=False))), 2)
        >>> merged.learn([{"head.weight": torch.tensor([[3.0]])}, merged.net.state_dict()])
        >>> torch.allclose(merged.weights()["head.weight"], (3.0 + merged.net.head.weight) / 2)
        True
    """

    tunings = _GRID

    def __init__(self, net: nn.Module, experts: int) -> None:
        super().__init__()
        self.net = net
        self.experts = experts
        self._buffer_of: dict[str, str] = {}
        layers = dict.fromkeys(name.rpartition(".")[0] for name, _ in net.named_parameters())
        even = torch.full((experts,), 1.0 / experts)
        self.coefficients = nn.ParameterDict({layer: even.clone() for layer in layers})
        for name, parameter in net.named_parameters():
            self._buffer_of[name] = f"vector_{name.replace('.', '_')}"
            zeros = torch.zeros(experts, *parameter.shape)
            self.register_buffer(self._buffer_of[name], zeros)

    def vectors(self, name: str) -> Tensor:
        """Return the task vectors of a parameter, (K, ...)."""
        found: Tensor = self.get_buffer(self._buffer_of[name])
        return found

    @torch.no_grad()
    def learn(self, experts: Sequence[dict[str, Tensor]]) -> None:
        """Take the task vectors of networks that were fine-tuned from `net` as it stands."""
        for name, parameter in self.net.named_parameters():
            stacked = torch.stack([expert[name] for expert in experts])
            self.vectors(name).copy_(stacked - parameter)

    def weights(self) -> dict[str, Tensor]:
        """Return the merged weights by name."""
        found = {}
        for name, parameter in self.net.named_parameters():
            c = self.coefficients[name.rpartition(".")[0]]
            found[name] = parameter + torch.tensordot(c, self.vectors(name), dims=1)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the merged network."""
        outputs: Tensor = functional_call(self.net, self.weights(), (images,))
        return outputs

    def tune(self, score: Callable[[], float]) -> None:
        """Keep the best coefficient for all experts and layers together: task arithmetic.

        Args:
            score: of the model as it stands, higher is better; called `tunings` times.
        """
        scores: dict[float, float] = {}
        for step in range(1, _GRID + 1):
            self._set(step / _GRID)
            scores[step / _GRID] = score()
        self._set(max(scores, key=lambda c: scores[c]))

    @torch.no_grad()
    def _set(self, coefficient: float) -> None:
        for c in self.coefficients.values():
            c.fill_(coefficient)


def merged_cnn(channels: int, classes: int) -> Merged:
    """Make three strided convolutions with GroupNorm and a linear layer, to be merged.

    Args:
        channels: of the images.
        classes: outputs.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, width in enumerate((8, 16, 32), start=1):
        layers[f"conv{block}"] = nn.Conv2d(channels, width, 3, 2, padding=1, bias=False)
        layers[f"norm{block}"] = nn.GroupNorm(4, width)
        layers[f"relu{block}"] = nn.ReLU()
        channels = width
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, classes)
    return Merged(nn.Sequential(layers), EXPERTS)
