"""Weights in files: written with a checksum, and read into a model that they fit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from evostep.checksums import checksum
from evostep.errors import InputError, reason, warn
from evostep.lab.storage import replacing

_LONG = 64  # characters of a checksum


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


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """Save a model's parameters and buffers as safetensors, atomically."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            tensor = tensor.clone()  # safetensors refuses shared memory
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.contiguous()
    with replacing(path) as part:
        write_tensors(part, tensors)


def write_tensors(path: Path, tensors: dict[str, Tensor], **about: str) -> None:
    """Write tensors as safetensors with a checksum, and what else is to be known of them."""
    save_file(tensors, path, {**about, "checksum": _sum_of(tensors)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors, and what is known of them; one of a file without a checksum is believed.

    Raises:
        ValueError: it is cut off, something else, or not as it was written.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # a header may say anything of its tensors
        raise ValueError(reason(error)) from error
    sums = [text for name, text in about.items() if name == "checksum" or len(text) == _LONG]
    if any(text != _sum_of(tensors) for text in sums):  # one under a name that is damaged, too
        raise ValueError("its numbers are not those that were written")
    return tensors, about


def _sum_of(tensors: dict[str, Tensor]) -> str:
    return checksum(dict(sorted(tensors.items())))  # a file has an order of its own
