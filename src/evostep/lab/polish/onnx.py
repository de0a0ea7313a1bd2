"""ONNX models, by onnxruntime: a black box that returns numbers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evostep.errors import InputError, needs_package, reason

_KINDS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def run_onnx(path: Path, batches: Sequence[Tensor]) -> Tensor:
    """Return a model's outputs (n, C) for images.

    Args:
        path: of the model, with one input of images (n, channels, height, width).
        batches: normalised images, float32, on the CPU.

    Returns:
        float64: its first output with two dimensions.

    Raises:
        InputError: onnxruntime is not installed; no such file, or no model; other inputs.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: correct the path")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise needs_package(str(path), "onnxruntime", "evostep[onnx]", error) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen kinds
        raise InputError(f"{path} is no ONNX model ({reason(error)}): export it again") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _KINDS:
        told = ", ".join(f"{one.name}: {one.type}" for one in inputs)
        raise InputError(f"{path} takes {told}: it must take one tensor of images")
    size = inputs[0].shape[0] if inputs[0].shape else None
    kind = _KINDS[inputs[0].type]
    found = []
    for batch in batches:
        # a model may be made for one size of batches
        for piece in batch.split(size) if isinstance(size, int) else [batch]:
            images = piece.numpy().astype(kind)
            if isinstance(size, int) and len(images) < size:
                images = np.resize(images, (size, *images.shape[1:]))
            found.append(_run(session, path, images)[: len(piece)])
    return torch.from_numpy(np.concatenate(found)).double()


def _run(session: Any, path: Path, images: np.ndarray[Any, Any]) -> Any:
    try:
        outputs = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:  # as above
        raise InputError(
            f"{path} cannot take images of shape {images.shape} ({reason(error)}): give data of "
            "the shape that it was made for"
        ) from error
    for output in outputs:
        if isinstance(output, np.ndarray) and output.ndim == 2 and output.dtype.kind == "f":
            return output
    raise InputError(f"{path} gives no output of shape (n, classes): export the logits")
