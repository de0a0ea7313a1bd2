"""Forms: how outputs and targets are read, found by their shapes and values.

A metric with a name compares predictions with classes or labels. Where outputs have these, and what
the numbers of the targets stand for, is found once, at the first scoring, by `read_form`;
`Form.predict` then brings each batch into one layout, without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from evostep.errors import InputError, warn

TargetKind = Literal["auto", "classes", "labels"]
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Form:
    """How the outputs and targets of a set are read.

    Attributes:
        kind: ``"classes"``: one of several; ``"binary"``: 0 or 1 for each output; ``"labels"``:
            binary, with a column for each label; ``"unknown"``: left as they are.
        class_dim: of the outputs, where the classes are.
        soft: whether targets have a number for each class, too: the largest counts.
        signed: whether classes 0 and 1 are written -1 and 1.
        probabilities: whether outputs are, binary ones 1 above 0.5; otherwise logits, above 0.
        ignore_index: what marks integer targets that do not count; None: nothing does.
        shift: whether outputs at a position are about the target at the next one.
    """

    kind: Literal["classes", "binary", "labels", "unknown"]
    class_dim: int = 1
    soft: bool = False
    signed: bool = False
    probabilities: bool = False
    ignore_index: int | None = None
    shift: bool = False

    def align(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Return outputs and targets position by position, the classes in dimension 1."""
        outputs, targets = as_tensor(outputs), as_tensor(targets, outputs)
        if self.shift:
            outputs, targets = outputs[:, :-1], targets[:, 1:]
        if self.kind == "classes":
            outputs = outputs.movedim(self.class_dim, 1)
            targets = targets.movedim(self.class_dim, 1) if self.soft else targets
            if not self.soft and targets.ndim == outputs.ndim:
                targets = targets.squeeze(1)  # a column
        elif self.kind == "binary":
            targets = targets.reshape(outputs.shape)
        return outputs, targets

    def counted(self, targets: Tensor) -> Tensor | None:
        """Return which aligned targets count, a mask of their shape; None: all."""
        return None if self.ignore_index is None else targets != self.ignore_index

    def predict(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return predictions, true classes or labels (int64), and which of them count.

        Returns:
            Tensors of one shape, (n, ...), whose first dimension is the examples; None: all count.
        """
        outputs, targets = self.align(outputs, targets)
        if self.kind == "classes":
            guess = outputs.argmax(1)
        else:
            guess = (outputs > (0.5 if self.probabilities else 0.0)).long()
        return guess, self.truth(targets), self.counted(targets)

    def truth(self, targets: Tensor) -> Tensor:
        """Return the true classes or labels of aligned targets, int64."""
        if self.kind != "classes":
            # 0.5 is between 0 and 1, between -1 and 1, and between smoothed labels
            return (targets > 0.5).long()
        if self.soft:
            return targets.argmax(1)
        return (targets > 0 if self.signed else targets).long()

    def logits(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits, true classes or labels (int64), and which of these count.

        Returns:
            Tensors (n, ...), logits of classes with one more dimension, of the classes, at the end.
        """
        outputs, targets = self.align(outputs, targets)
        if self.kind == "classes":
            outputs = outputs.movedim(1, -1)
        if self.probabilities:
            outputs = outputs.double()
            outputs = outputs.log() if self.kind == "classes" else outputs.logit()
        return outputs, self.truth(targets), self.counted(targets)

    def each(self, weights: Tensor | None, true: Tensor, counted: Tensor | None) -> Tensor | None:
        """Return what each of aligned targets counts, of their shape; None: 1 each.

        Args:
            weights: (n,), or one for each target as it was before it was aligned; None: 1 each.
            true: aligned targets.
            counted: which of them count; None: all.

        Raises:
            InputError: weights of another shape.
        """
        if weights is None:
            return counted
        if weights.ndim == 1:
            weights = weights.view(-1, *[1] * (true.ndim - 1)).expand(true.shape)
        weights = weights[:, 1:] if self.shift and weights.shape[1:] != true.shape[1:] else weights
        if weights.numel() != true.numel():
            raise InputError(
                f"weights of shape {tuple(weights.shape)} for targets of shape "
                f"{tuple(true.shape)}: give one for each example, (n,), or one for each target"
            )
        weights = weights.reshape(true.shape).double()
        return weights if counted is None else weights * counted

    def classes(self, outputs: Tensor) -> int:
        """Return how many classes there are."""
        return outputs.shape[self.class_dim] if self.kind == "classes" else 2


@dataclass(frozen=True)
class Known:
    """What is known beforehand of a set, from what a user said and from the model.

    Attributes:
        targets: ``"classes"`` or ``"labels"`` to force one of them, see `Fitness`.
        class_dim: of the outputs; None: to be found by shapes.
        ignore_index: of the loss.
        probabilities: whether outputs are; None: to be found by values.
        tokens: whether outputs of three dimensions are (n, tokens, classes), by definition.
        shift: whether they are about the next token.
        ignores: whether some targets may be ignored that are not seen now.
    """

    targets: TargetKind = "auto"
    class_dim: int | None = None
    ignore_index: int = -100
    probabilities: bool | None = None
    tokens: bool = False
    shift: bool = False
    ignores: bool = False

    def __post_init__(self) -> None:
        if self.targets not in get_args(TargetKind):
            raise InputError(f"targets must be 'auto', 'classes' or 'labels', got {self.targets!r}")


class Reader:
    """Finds the form of a fitness's outputs and targets at the first scoring, and keeps it.

    Args:
        known: beforehand.

    Attributes:
        form: once it was found.
        met: whether a scoring went through, with a model that was met.
        marks: whether some targets may not count.
    """

    def __init__(self, known: Known = Known()) -> None:
        self.known = known
        self.form: Form | None = None
        self.met = False
        self.marks = False
        self._others: Sequence[Any] = ()

    def meet(self, model: nn.Module, targets: Sequence[Any] | None) -> None:
        """Take note of a model and all targets, before the first scoring.

        Args:
            model: gives the outputs.
            targets: of all batches; None: a function of the user's makes them, with the outputs.
        """
        found = self.known.probabilities
        if found is None and isinstance(last_module(model), nn.Sigmoid | nn.Softmax):
            found = True
        shift = targets is not None and predicts_next(model)
        self.known = replace(
            self.known, probabilities=found, shift=shift, tokens=shift, ignores=targets is None
        )
        mark = self.known.ignore_index
        self.marks = targets is None or any(
            bool((t == mark).any())
            for t in targets
            if isinstance(t, Tensor) and not t.is_floating_point() and t.dtype != torch.bool
        )
        self._others = targets or ()

    def note_output(self, *call: Any) -> None:
        """Take note, as a forward hook, of a model that names its outputs `logits`."""
        output = call[-1]
        if hasattr(output, "logits") or (isinstance(output, dict) and "logits" in output):
            self.known = replace(self.known, tokens=True)

    def settle(self, pairs: Sequence[Pair], who: str, *, of_loss: bool) -> Form:
        """Find the form of these batches and keep it."""
        self.form = read_form(pairs, self.known, who, others=self._others, of_loss=of_loss)
        self._others = ()
        return self.form

    def check(self, outputs: Any, targets: Any, who: str, *, of_loss: bool) -> None:
        """Raise InputError for a further batch, with targets that were not there to be seen."""
        if self.form is not None and self.form.kind == "classes" and self.known.ignores:
            read_form([(outputs, targets)], self.known, who, of_loss=of_loss)


def needs_values(outputs: Any, targets: Any) -> bool:
    """Return whether only the values of all examples tell how they are read: as many as targets."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return False
    return outputs.numel() == targets.numel()


def read_form(
    pairs: Sequence[Pair],
    known: Known,
    who: str,
    *,
    others: Sequence[Any] = (),
    of_loss: bool = False,
) -> Form:
    """Return how the outputs and targets of some batches are read.

    Args:
        pairs: (outputs, targets) of each batch.
        known: beforehand.
        who: asks, to be told in errors: a metric.
        others: targets of all batches, where these are only some.
        of_loss: whether for a loss of classes, which reads targets in columns itself.

    Raises:
        InputError: it is not understood; one line with shapes, type, range and the correction.

    Example:
        >>> outputs, targets = torch.zeros(4, 3), torch.tensor([0, 1, 2, 2])
        >>> read_form([(outputs, targets)], Known(), "a metric").kind
        'classes'
    """
    outputs = [as_tensor(o, who=who) for o, _ in pairs]
    targets = [as_tensor(t, o, who=who) for o, (_, t) in zip(outputs, pairs, strict=True)]
    more = [as_tensor(t, outputs[0], who=who) for t in others]
    return _Reading(outputs, targets, more, known, who, of_loss).form()


class _Reading:
    """One reading of a set; what is not understood is an `InputError`."""

    def __init__(
        self,
        outputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        others: Sequence[Tensor],
        known: Known,
        who: str,
        of_loss: bool,
    ) -> None:
        self.o, self.t = outputs[0], targets[0]
        self.outputs, self.all = outputs, [*(others or targets)]
        self.known, self.who, self.of_loss = known, who, of_loss
        whole = not self.t.is_floating_point() and self.t.dtype != torch.bool
        self.ignored = whole and self.any(lambda t: t == known.ignore_index)
        self.mark = known.ignore_index if whole and (self.ignored or known.ignores) else None
        if self.ignored:
            self.all = [t[t != known.ignore_index] for t in self.all]
        ends = [torch.aminmax(t.to(torch.float64)) for t in self.all if t.numel()]
        self.low = min((float(end.min) for end in ends), default=0.0)
        self.high = max((float(end.max) for end in ends), default=0.0)

    def any(self, test: Callable[[Tensor], Tensor]) -> bool:
        """Return whether a target is so."""
        return any(bool(test(t).any()) for t in self.all)

    def error(self, why: str) -> InputError:
        spread = f", from {self.low:g} to {self.high:g},"
        return InputError(
            f"{self.who}: outputs of shape {tuple(self.o.shape)} and targets of shape "
            f"{tuple(self.t.shape)}, {str(self.t.dtype).removeprefix('torch.')}{spread} {why}"
        )

    def form(self) -> Form:
        o, t = self.o, self.t
        if o.ndim == 0 or t.ndim == 0:
            raise self.error("have no dimension of examples: give (n, classes) and (n,)")
        column = t.ndim == o.ndim > 1 and t.shape[1] == 1 != o.shape[1]
        if o.ndim == t.ndim + 1 or (column and o.ndim == 2):
            dims = self.class_dims(o, t.squeeze(1) if column else t)
            if dims:
                return self.of_classes(self.one_of(dims))
        if o.shape == t.shape and o.ndim > 1 and self.numbers_of_classes():
            return self.of_columns()
        if o.numel() == t.numel() and len(o) == len(t):
            return self.of_bits("binary")
        raise self.error(
            "do not fit: give (n, classes, ...) or (n, ..., classes) for targets (n, ...), equal "
            "shapes for 0/1 labels, or class_dim="
        )

    def numbers_of_classes(self) -> bool:
        dims = {self.known.class_dim} if self.known.class_dim is not None else {1, -1}
        return any(self.o.shape[d] > 1 for d in dims)

    def class_dims(self, o: Tensor, t: Tensor) -> list[int]:
        """Return where in the outputs classes may be, for the targets to be without them."""
        wanted = self.known.class_dim
        dims = sorted({1, o.ndim - 1}) if wanted is None else [wanted % o.ndim]
        if wanted is None and self.known.tokens and o.ndim == 3:
            dims = [2]
        return [d for d in dims if o.shape[:d] + o.shape[d + 1 :] == t.shape and o.shape[d] > 1]

    def one_of(self, dims: list[int]) -> int:
        if len(dims) > 1:
            raise self.error(
                "leave open where the classes are: pass class_dim=1 for (n, classes, ...) or "
                "class_dim=-1 for (n, ..., classes)"
            )
        return dims[0]

    def of_classes(self, dim: int) -> Form:
        """Targets are numbers of classes."""
        classes = self.o.shape[dim]
        if self.known.targets == "labels":
            raise self.error("are no labels: those have the shape of the outputs")
        if self.any(lambda t: t != t.round() if t.is_floating_point() else t != t):
            raise self.error(f"are no numbers of classes: {_REGRESSION}")
        signed = classes == 2 and self.low == -1 and not self.any(lambda t: t.abs() != 1)
        if not signed and (self.low < 0 or self.high >= classes):
            odd = self.low if self.low < 0 else self.high
            raise self.error(
                f"do not fit {classes} classes, 0 to {classes - 1}: number them so, or pass "
                f"loss=torch.nn.CrossEntropyLoss(ignore_index={odd:g}) if {odd:g} marks targets "
                "that do not count"
            )
        # the next token is told in (n, tokens, classes) alone
        shift = self.known.shift and self.o.ndim == 3 and dim == 2
        return Form(
            "classes",
            dim,
            signed=signed,
            ignore_index=self.mark,
            shift=shift,
            probabilities=self.one_in_all(dim),
        )

    def one_in_all(self, dim: int) -> bool:
        """Return whether outputs are probabilities of classes: not below 0, and 1 together."""
        if not self.o.is_floating_point():
            return False
        tolerance = 2e-2 if self.o.element_size() < 4 else 1e-3

        def rows(o: Tensor) -> Tensor:  # what does not count may be anything
            one = ((o.double().sum(dim) - 1).abs() < tolerance) & (o >= 0).all(dim)
            return one | ~o.isfinite().all(dim)

        some = any(bool(o.isfinite().any()) for o in self.outputs)
        return some and all(bool(rows(o).all()) for o in self.outputs)

    def of_columns(self) -> Form:
        """Targets have the shape of outputs with several columns: of classes, or of labels."""
        dims = []
        if self.known.targets != "labels" and self.low >= 0 and self.high <= 1:
            wanted = self.known.class_dim
            dims = sorted({1, self.o.ndim - 1}) if wanted is None else [wanted % self.o.ndim]
            if wanted is None and self.known.tokens and self.o.ndim == 3:
                dims = [2]
            dims = [d for d in dims if self.o.shape[d] > 1 and self.is_one_of(d)]
        if dims:
            dim = self.one_of(dims)
            return Form("classes", dim, soft=True, probabilities=self.one_in_all(dim))
        if self.known.targets == "classes":
            raise self.error("are no classes: a row of one-hot or soft targets sums to 1")
        return self.of_bits("labels" if self.o.ndim == 2 else "binary")

    def is_one_of(self, dim: int) -> bool:
        """Return whether targets sum to 1 along a dimension, or one is high and the rest low."""
        tolerance = 2e-2 if self.t.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if self.ignored:
            return False
        if not self.any(lambda t: (t.double().sum(dim) - 1).abs() >= tolerance):
            return True
        one_high = not self.any(lambda t: (t.double() == self.high).sum(dim) != 1)
        return one_high and self.low < 0.5 < self.high and self.two_values()

    def two_values(self) -> bool:
        return not self.any(lambda t: (t.double() != self.low) & (t.double() != self.high))

    def of_bits(self, kind: Literal["binary", "labels"]) -> Form:
        """Targets are 0 and 1, or -1 and 1, or 0 and 1 that were smoothed."""
        if self.known.targets == "classes" and kind == "labels":
            raise self.error("are no classes: a row of one-hot or soft targets sums to 1")
        if self.of_loss:
            if kind == "labels":
                return Form("unknown")
            raise self.error(
                "have no column for each class, which cross-entropy takes: pass "
                "loss=torch.nn.functional.binary_cross_entropy_with_logits for 0/1 labels, or "
                "loss=torch.nn.functional.mse_loss for a regression"
            )
        smoothed = abs(self.low + self.high - 1) < 1e-3 and self.low < 0.5
        alone = self.low == self.high and self.low in (-1, 0, 1)
        if not self.two_values() or not (alone or smoothed or (self.low, self.high) == (-1, 1)):
            whole = not self.any(lambda t: t.double() != t.double().round())
            hint = "one output each takes 0 and 1, or -1 and 1; " if whole else ""
            raise self.error(f"are no 0/1 labels: {hint}{_REGRESSION}")
        return Form(kind, ignore_index=self.mark, probabilities=self.probabilities())

    def probabilities(self) -> bool:
        if self.known.probabilities is not None:
            return self.known.probabilities
        values = torch.cat([o.flatten() for o in self.outputs])
        values = values[values.isfinite()]  # what does not count may be anything
        if not values.numel():
            return False
        if not values.is_floating_point():
            return bool(((values == 0) | (values == 1)).all())  # predictions are no logits
        low, high = float(values.min()), float(values.max())
        within = low >= 0 and high <= 1 and high > 0
        if within:
            warn(
                f"{self.who}: all outputs lie in [{low:.3g}, {high:.3g}] and are read as "
                "probabilities, 1 from 0.5 on: pass loss=F.binary_cross_entropy_with_logits if "
                "they are logits, F.binary_cross_entropy if they are not"
            )
        return within


_REGRESSION = (
    "for a regression pass metric='neg-loss', loss=torch.nn.functional.mse_loss, or a metric of "
    "your own on (outputs, targets)"
)


def as_tensor(value: Any, like: Tensor | None = None, *, who: str = "the metric") -> Tensor:
    """Return a tensor of outputs or, with outputs `like`, of targets.

    Raises:
        InputError: it is none, nor numbers that make one.
    """
    if isinstance(value, Tensor):
        return value
    what = "outputs" if like is None else "targets"
    if not isinstance(value, str | dict | tuple) and value is not None:
        try:
            return torch.as_tensor(value, device=None if like is None else like.device)
        except (TypeError, ValueError, RuntimeError):
            pass
    got = "nothing" if value is None else type(value).__name__
    if isinstance(value, tuple | list | dict):
        inside = value.values() if isinstance(value, dict) else value
        shapes = [tuple(i.shape) if isinstance(i, Tensor) else type(i).__name__ for i in inside]
        got += f" of {', '.join(map(str, shapes[:3]))}{', ...' if len(shapes) > 3 else ''}"
    where = "outputs[0]" if isinstance(value, tuple) else "..."
    raise InputError(
        f"{who} takes {what} that are one tensor, got a {got}: pass "
        f"forward=lambda model, batch: ({where if like is None else 'outputs'}, targets) that "
        "picks it, or a metric of your own on (outputs, targets)"
    )


def last_module(model: nn.Module) -> nn.Module:
    """Return the module registered last, which in most models makes the outputs."""
    inner = list(model.children())
    return last_module(inner[-1]) if inner else model


def predicts_next(model: nn.Module) -> bool:
    """Return whether a model is one of Hugging Face's whose outputs are about the next token."""
    name = type(model).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return not name.startswith("XLNet")  # which is told what it has to predict
    inner = getattr(model, "_orig_mod", getattr(model, "module", None))
    if name.startswith("Peft"):
        inner = getattr(getattr(model, "base_model", None), "model", None)
    return isinstance(inner, nn.Module) and predicts_next(inner)
