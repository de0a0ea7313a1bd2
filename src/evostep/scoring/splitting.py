"""Forms of batches: what of one goes into a model, as which arguments, and what it is held against.

A batch is split once, when it is read, by what the model's ``forward`` takes. From then on inputs
that are a plain tuple are positional arguments, a plain dictionary is keyword arguments, and
anything else is the one argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from evostep.errors import InputError
from evostep.scoring.nests import batch_size, leaves

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
WEIGHT_KEYS = ("sample_weight", "sample_weights", "weights", "weight")


@dataclass(frozen=True)
class Weighted:
    """Targets whose examples do not weigh the same.

    Attributes:
        targets: what outputs are compared with.
        weights: finite numbers >= 0, (n,) of each example, or one for each target.
    """

    targets: Any
    weights: Tensor


@dataclass(frozen=True)
class Signature:
    """What the ``forward`` of a model takes.

    Attributes:
        text: as it is written.
        required: positional arguments without a default.
        most: positional arguments in all; a large number where any number is taken.
        names: of keyword arguments; None: any.
    """

    text: str = "(*args, **kwargs)"
    required: int = 0
    most: int = 2**31
    names: frozenset[str] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Signature:
        """Read it; of what a wrapper wraps, for those of torch."""
        while (inner := _wrapped(model)) is not None:
            model = inner
        try:
            read = inspect.signature(model.forward)
        except (TypeError, ValueError):  # scripted
            return cls()
        kinds = list(read.parameters.values())
        places = [p for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        anything = any(p.kind is p.VAR_KEYWORD for p in kinds)
        return cls(
            str(read.replace(return_annotation=inspect.Signature.empty)),
            sum(p.default is p.empty for p in places),
            2**31 if any(p.kind is p.VAR_POSITIONAL for p in kinds) else len(places),
            None
            if anything
            else frozenset(p.name for p in kinds if p.kind is not p.POSITIONAL_ONLY),
        )

    def takes(self, count: int) -> bool:
        """Return whether so many positional arguments can be passed."""
        return self.required <= count <= self.most

    def takes_names(self, names: Mapping[str, Any]) -> bool:
        """Return whether all of these can be passed by name."""
        return self.names is None or self.names >= names.keys()


def _wrapped(model: nn.Module) -> nn.Module | None:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: Any = model.module
    else:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
    return inner if isinstance(inner, nn.Module) else None


def split_batch(
    batch: Any, takes: Signature | None = None, *, collated: bool = False
) -> tuple[Any, Any]:
    """Split a batch into (inputs, targets): see `Fitness` for the forms it may have.

    Args:
        batch: of any of these forms.
        takes: what the model's ``forward`` takes, which says what a batch of more than two parts
            is; None: anything.
        collated: whether lists in it are tuples, from which `default_collate` made them.

    Returns:
        Inputs as they are passed on: a plain tuple as positional arguments, a plain dictionary as
        keyword arguments, anything else as one argument; and targets, `Weighted` where the batch
        has weights.

    Raises:
        ValueError: a batch of another form, or one that may be read in two ways.

    Example:
        >>> split_batch({"x": 1, "labels": 2})
        ({'x': 1}, 2)
    """
    takes = takes or Signature()
    fields_ = getattr(batch, "_fields", None)
    if isinstance(batch, PackedSequence):
        pass
    elif isinstance(batch, Mapping):
        return _by_name(dict(batch), takes, named=True)
    elif fields_ is not None and set(fields_) & set(TARGET_KEYS):
        return _by_name(batch._asdict(), takes, named=False)
    elif is_dataclass(batch) and not isinstance(batch, type):
        items = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return _by_name(items, takes, named=False)
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        return _by_place(list(batch), takes, collated)
    raise ValueError(
        f"a batch must be (inputs, targets) or a dictionary, got {type(batch).__name__}: "
        "pass forward= for batches of another form"
    )


def _by_name(items: dict[str, Any], takes: Signature, *, named: bool) -> tuple[Any, Any]:
    """Split what has names; `named` says whether these are keyword arguments for sure."""
    keys = [key for key in TARGET_KEYS if key in items]
    if not keys:
        raise ValueError(
            f"a batch with the keys {', '.join(map(str, items))} has no targets: name them one "
            f"of {', '.join(TARGET_KEYS)}, or pass forward="
        )
    targets = items.pop(keys[0])
    known = takes.names or ()
    for key in WEIGHT_KEYS:
        if key in items and key not in known:
            if _are_weights(items[key], targets):
                targets = Weighted(targets, _flat(items.pop(key)))
                break
            if takes.names is not None:
                raise InputError(
                    f"{key!r} of the batch is {_told(items[key])}, which is no weights: these are "
                    "finite numbers >= 0, (n,) or one for each target"
                )
    if takes.takes_names(items) and (named or takes.names is not None):
        return items, targets
    values = tuple(items.values())
    if len(values) == 1 and takes.takes(1):
        return _one(values[0]), targets
    if not named and takes.takes(len(values)):
        return values, targets
    unknown = [key for key in items if takes.names is not None and key not in takes.names]
    raise InputError(
        f"the model's forward{takes.text} takes no {', '.join(map(repr, unknown or items))}, which "
        f"the batch has: leave {'it' if len(unknown) == 1 else 'them'} out, or pass forward="
    )


def _by_place(parts: list[Any], takes: Signature, collated: bool) -> tuple[Any, Any]:
    """Split (inputs, targets), (input1, input2, ..., targets) or either with weights at its end."""
    *inputs, last = parts
    if len(inputs) == 1:
        return _inputs(inputs[0], takes, collated), last
    plain = takes.takes(len(inputs))
    weighted = takes.takes(len(inputs) - 1) and _are_weights(last, inputs[-1])
    weighted = weighted and last.is_floating_point()
    known = takes.most < 2**31  # else the forward takes anything, and does not tell
    if weighted and plain and known and last.ndim == 1 and bool(last.any()):
        raise InputError(
            f"a batch of {len(parts)} that ends in {_told(last)} may be inputs and targets, or end "
            f"in weights, as the model's forward{takes.text} takes both: give a dictionary with "
            "'targets' and 'sample_weight' or the forward's names, or pass forward="
        )
    if plain:
        return tuple(inputs), last
    if weighted:
        *inputs, targets = inputs
        passed = _inputs(inputs[0], takes, collated) if len(inputs) == 1 else tuple(inputs)
        return passed, Weighted(targets, _flat(last))
    raise InputError(
        f"a batch of {len(parts)} does not fit the model's forward{takes.text}: before the targets "
        f"it has {len(inputs)} inputs, and its end, {_told(last)}, is not weights (floating-point, "
        "(n,), not negative): give a dictionary, or pass forward="
    )


def _inputs(value: Any, takes: Signature, collated: bool) -> Any:
    """Return the first of (inputs, targets) as it is passed on."""
    if isinstance(value, Mapping):
        named = {str(key): item for key, item in value.items()}
        return named if takes.takes_names(named) else (value,)
    if type(value) is tuple:
        return value if takes.takes(len(value)) or not takes.takes(1) else (value,)
    if type(value) is list and value and all(isinstance(leaf, Tensor) for leaf in leaves(value)):
        several = takes.required >= 2 and takes.takes(len(value))
        if several or (collated and takes.takes(len(value))):
            return tuple(value)
    return value


def _one(value: Any) -> Any:
    """Return what is passed on as the one argument."""
    return (value,) if type(value) in (tuple, dict) else value


def _are_weights(value: Any, targets: Any) -> bool:
    """Return whether something may be the weights of a batch, which may all be 0 in one batch."""
    if not isinstance(value, Tensor) or value.dtype == torch.bool or not value.ndim:
        return False
    if value.is_complex() or len(value) != batch_size(None, targets):
        return False
    known = {value.shape[:1], (*value.shape[:1], 1)}
    if isinstance(targets, Tensor):
        known |= {targets.shape, targets.shape[:-1], targets.shape[:1] + targets.shape[2:]}
    return value.shape in known and bool((value >= 0).all() and value.isfinite().all())


def _flat(weights: Tensor) -> Tensor:
    return weights.squeeze(1) if weights.ndim == 2 and weights.shape[1] == 1 else weights


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def unweighted(targets: Any) -> Any:
    """Return targets without the weights of their examples."""
    return targets.targets if isinstance(targets, Weighted) else targets


def weights_of(targets: Any) -> Tensor | None:
    """Return the weights of the examples, where targets have such."""
    return targets.weights if isinstance(targets, Weighted) else None


def weigh(values: Tensor, weights: Tensor) -> Tensor:
    """Return values of examples, (n,), such that their mean is the one weighted by `weights`, (n,).

    What weighs nothing may be anything.

    Example:
        >>> weigh(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0])).mean()
        tensor(0.7500)
    """
    weights = weights.to(values)
    return torch.where(weights == 0, 0.0, values * (weights / weights.mean()))


def as_numbers(targets: Any, what: str) -> Any:
    """Return targets as the one tensor that a metric takes.

    Args:
        targets: a tensor, a list of numbers, or a nest that holds one tensor.
        what: the metric, for the error.

    Raises:
        ValueError: texts, or several tensors.
    """
    if isinstance(targets, Weighted):
        return Weighted(as_numbers(targets.targets, what), targets.weights)
    if targets is None or isinstance(targets, Tensor):
        return targets
    found = list(leaves(targets))
    if len(found) == 1 and isinstance(found[0], Tensor):
        return found[0]
    if isinstance(targets, tuple | list) and all(isinstance(x, int | float) for x in found):
        return torch.as_tensor(targets)
    if isinstance(targets, Mapping):
        told = f"a dictionary with the keys {', '.join(map(str, targets))}"
    else:
        kinds = sorted({type(x).__name__ for x in found})
        told = f"a {type(targets).__name__} of {', '.join(kinds)}"
    raise InputError(
        f"{what} takes targets that are one tensor, got {told}: pass forward=, or a callable on "
        "(outputs, targets) as the metric"
    )
