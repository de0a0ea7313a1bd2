"""Weights from a file, into a model that they fit; a head for other classes may stay as it is."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from evostep.errors import InputError, reason, warn


def find_head(model: nn.Module, classes: int) -> tuple[str, nn.Linear | nn.Conv2d] | None:
    """Return the last linear layer or convolution with one output per class, by name."""
    found = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == classes:
            found = name, module
    return found


def load_weights(model: nn.Module, path: Path, classes: int) -> None:
    """Load a safetensors file in place: all of it or nothing, but for a head of other classes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"no file {path}: give --init-from a .safetensors file")
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot read {path} ({reason(error)}): give a whole .safetensors file"
        ) from error
    own = model.state_dict()
    fresh = _head_of_other_classes(model, own, given, classes)
    if fresh:
        shapes = f"{tuple(given[fresh[0]].shape)} in the file, {tuple(own[fresh[0]].shape)} here"
        warn(f"{path} has a head for other classes ({fresh[0]}: {shapes}): left as initialised")
        given = {key: value for key, value in given.items() if key not in fresh}
    # Of tied weights a safetensors file may hold one name only.
    there = {(own[key].data_ptr(), own[key].shape) for key in own.keys() & given.keys()}
    missing = [
        key
        for key, value in own.items()
        if key not in given and key not in fresh and (value.data_ptr(), value.shape) not in there
    ]
    problems = {
        "missing": missing,
        "unexpected": [key for key in given if key not in own],
        "misshaped": [
            f"{key} {tuple(given[key].shape)} for {tuple(value.shape)}"
            for key, value in own.items()
            if key in given and given[key].shape != value.shape
        ],
    }
    faults = [
        f"{kind} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for kind, names in problems.items()
        if names
    ]
    if faults:
        raise InputError(
            f"{path} does not fit the model: {'; '.join(faults)}: give its own weights"
        )
    model.load_state_dict(given, strict=False)


def _head_of_other_classes(
    model: nn.Module, own: dict[str, Tensor], given: dict[str, Tensor], classes: int
) -> list[str]:
    """Return the names of the head's weights where the file's has other outputs, else none."""
    head = find_head(model, classes)
    if head is None:
        return []
    prefix = f"{head[0]}." if head[0] else ""
    names = [f"{prefix}{kind}" for kind in ("weight", "bias") if f"{prefix}{kind}" in own]
    if not all(name in given for name in names):
        return []
    same_inputs = all(given[name].shape[1:] == own[name].shape[1:] for name in names)
    other_outputs = given[names[0]].shape[:1] != own[names[0]].shape[:1]
    return names if same_inputs and other_outputs else []
