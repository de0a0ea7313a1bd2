"""Weights from a file, into a model that they fit; a head for other classes may stay as it is."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from evostep.errors import InputError, reason, warn
from evostep.lab.storage import read_tensors


def load_weights(model: nn.Module, path: Path, head: str | None) -> None:
    """Load a safetensors file in place: all of it or nothing, but for a head of other classes.

    Args:
        model: to load them into.
        path: the file.
        head: the path of the layer that makes the outputs; None: no layer does.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: give --init-from a .safetensors file")
    try:
        given, _ = read_tensors(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path} ({reason(error)}): give a whole .safetensors file"
        ) from error
    own = model.state_dict()
    fresh = _head_of_other_classes(own, given, head)
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
    own: dict[str, Tensor], given: dict[str, Tensor], head: str | None
) -> list[str]:
    """Return the names of the head's weights where the file's has other outputs, else none."""
    if head is None:
        return []
    prefix = f"{head}." if head else ""
    names = [f"{prefix}{kind}" for kind in ("weight", "bias") if f"{prefix}{kind}" in own]
    if not names or not all(name in given for name in names):
        return []
    same_inputs = all(given[name].shape[1:] == own[name].shape[1:] for name in names)
    other_outputs = given[names[0]].shape[:1] != own[names[0]].shape[:1]
    return names if same_inputs and other_outputs else []
