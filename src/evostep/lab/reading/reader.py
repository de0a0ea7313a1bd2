"""The text recogniser of the package rapidocr-onnxruntime, frozen: images in, texts out.

PP-OCRv4 (https://github.com/PaddlePaddle/PaddleOCR) as RapidOCR carries it
(https://github.com/RapidAI/RapidOCR, Apache-2.0); of the package only the file of the recognition
model is read, by onnxruntime, on one thread, so that the same image gives the same text.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor

from evostep.errors import InputError, needs_package

HEIGHT = 48  # of the images that it was trained on
AT_ONCE = 16  # more take longer each: they no longer fit the caches


def recognise(images: Tensor) -> list[str]:
    """Return the text of each image: RGB in [0, 1], (n, 3, HEIGHT, width).

    Raises:
        InputError: another height, or the package is not there.
    """
    if images.ndim != 4 or tuple(images.shape[1:3]) != (3, HEIGHT):
        raise InputError(
            f"the reader takes images (n, 3, {HEIGHT}, width), got {tuple(images.shape)}: scale "
            "them"
        )
    session, alphabet = _session()
    bgr = images.flip(1).clamp(0, 1).mul(2).sub(1).cpu().float().numpy()
    name = session.get_inputs()[0].name
    texts: list[str] = []
    for first in range(0, len(bgr), AT_ONCE):
        probabilities = session.run(None, {name: bgr[first : first + AT_ONCE]})[0]
        texts += [collapse(row, alphabet) for row in probabilities.argmax(2).tolist()]
    return texts


def collapse(steps: list[int], alphabet: list[str]) -> str:
    """Return the text of the likeliest symbol of each step: CTC's best path, 0 is its blank.

    Graves et al. 2006, https://doi.org/10.1145/1143844.1143891.

    Example:
        >>> collapse([0, 1, 1, 0, 1, 2], ["", "A", "B"])
        'AAB'
    """
    pairs = zip([0, *steps], steps, strict=False)
    return "".join(alphabet[step] for before, step in pairs if step and step != before)


@functools.cache
def _session() -> tuple[Any, list[str]]:
    """Return the recognition model and its alphabet, which its file carries."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise needs_package("text-reader", "onnxruntime", "evostep[black-box]", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(model_file()), options, providers=["CPUExecutionProvider"]
    )
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    return session, ["", *characters, " "]


def model_file() -> Path:
    """Return the file of the recognition model.

    Raises:
        InputError: the package is not there, or another version that has no such file.
    """
    package = "rapidocr_onnxruntime"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        missing = ModuleNotFoundError(name=package)
        raise needs_package("text-reader", package, "evostep[black-box]", missing)
    files = sorted((Path(found.origin).parent / "models").glob("*_rec_*.onnx"))
    if not files:
        raise InputError(f"{package} carries no recognition model: install 'evostep[black-box]'")
    return files[0]
