"""Outputs that are NaN or infinite: no metric is asked about them, the member has failed.

Argmax and thresholds would turn them into votes. What is found stays on the device until somebody
reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evostep.scoring.forms import Form, Reader
from evostep.scoring.nests import leaves, map_tensors
from evostep.scoring.splitting import unweighted, weights_of

NOT_FINITE = (
    "the model's outputs are NaN or infinite (logits that are masked on purpose take a large "
    "finite number, such as torch.finfo(dtype).min)"
)


class Finite:
    """Watches the outputs of one scoring; those at targets that do not count may be anything.

    Args:
        reader: knows which targets count.
        members: how many, where outputs have a leading dimension of them; None: they have not.
    """

    def __init__(self, reader: Reader, members: int | None = None) -> None:
        self._reader = reader
        self._members = members
        self._ends: list[Tensor] = []

    def see(self, outputs: Any, targets: Any) -> None:
        """Look at the numbers of one batch, without waiting for the device.

        Args:
            outputs: of the model.
            targets: `Weighted` where examples have weights.
        """
        targets, weights = unweighted(targets), weights_of(targets)
        if weights is not None:
            outputs = self._weighty(outputs, targets, weights)
        if self._reader.marks and isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            outputs = self._counted(outputs, targets)
        for leaf in leaves(outputs):
            if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or not leaf.numel():
                continue
            leaf = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            if not leaf.is_floating_point():
                continue
            leaf = leaf.float() if leaf.element_size() < 2 else leaf
            rows = leaf.reshape(self._members or 1, -1)
            self._ends += rows.aminmax(dim=1)

    def _weighty(self, outputs: Any, targets: Any, weights: Tensor) -> Any:
        members = self._members
        if members is None:
            return without_weightless(outputs, targets, weights, self._reader)
        together = map_tensors(outputs, lambda t: t.flatten(0, 1))
        truth, each = map_tensors(
            (targets, weights), lambda t: t.repeat(members, *[1] * (t.ndim - 1))
        )
        found = without_weightless(together, truth, each, self._reader)
        return map_tensors(found, lambda t: t.unflatten(0, (members, -1)))

    def _counted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._members is None:
            return without_ignored(outputs, targets, self._reader)
        repeated = targets.repeat(self._members, *[1] * (targets.ndim - 1))
        return without_ignored(outputs.flatten(0, 1), repeated, self._reader)

    def flags(self) -> Tensor | None:
        """Return whether all outputs seen are finite, of each member, (members or 1,) bool."""
        if not self._ends:
            return None
        return torch.stack([end.double() for end in self._ends]).isfinite().all(0)

    @property
    def failed(self) -> bool:
        """Whether some were not; waits for the device."""
        flags = self.flags()
        return flags is not None and not bool(flags.all())


def without_weightless(outputs: Any, targets: Any, weights: Tensor, reader: Reader) -> Any:
    """Return outputs with zeros where the weight of an example, or of its target, is 0.

    Example:
        >>> outputs = torch.tensor([[torch.nan], [1.0]])
        >>> without_weightless(outputs, None, torch.tensor([0.0, 2.0]), Reader()).flatten()
        tensor([0., 1.])
    """
    form = reader.form or Form("unknown")
    if weights.ndim > 1 and form.kind != "unknown" and isinstance(outputs, Tensor):
        outputs, targets = form.align(outputs, targets)
        each = form.each(weights, form.truth(targets), None)
        weights = weights if each is None else each

    def one(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point() or leaf.shape[:1] != weights.shape[:1]:
            return leaf
        silent = weights == 0
        if leaf.ndim == silent.ndim + 1:
            silent = silent.unsqueeze(-1 if leaf.shape[:-1] == silent.shape else 1)
        while silent.ndim < leaf.ndim:
            silent = silent.unsqueeze(-1)
        try:
            return leaf.masked_fill(silent, 0)
        except RuntimeError:  # of other shapes: nothing is known of them
            return leaf

    return map_tensors(outputs, one)


def without_ignored(outputs: Tensor, targets: Tensor, reader: Reader) -> Tensor:
    """Return outputs with zeros at the targets that do not count, where these can be told.

    Example:
        >>> outputs, targets = torch.full((2, 3), torch.nan), torch.tensor([-100, -100])
        >>> without_ignored(outputs, targets, Reader()).isfinite().all()
        tensor(True)
    """
    if targets.is_floating_point() or targets.dtype == torch.bool:
        return outputs
    form, mark = reader.form or Form("unknown"), reader.known.ignore_index
    if form.kind != "unknown":
        outputs, targets = form.align(outputs, targets)
    ignored = targets == mark
    if outputs.ndim == targets.ndim + 1:
        by_last = form.kind == "unknown" and outputs.shape[:-1] == targets.shape
        ignored = ignored.unsqueeze(-1 if by_last else 1)
    try:
        return outputs.masked_fill(ignored, 0)
    except RuntimeError:  # of other shapes: nothing is known of them
        return outputs
