"""ONNX models, where onnxruntime is installed; errors where it is not."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evostep.errors import InputError
from evostep.lab.polish.onnx import run_onnx

IMAGES = [torch.rand(5, 1, 8, 8), torch.rand(3, 1, 8, 8)]


def test_without_onnxruntime_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(InputError, match="no file"):
        run_onnx(path, IMAGES)
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"not installed: pip install 'evostep\[onnx\]'"):
        run_onnx(path, IMAGES)


class Session:
    """Stands for onnxruntime's: doubles the first two pixels, and knows its size of batches."""

    size: Any = "n"
    kind = "tensor(float)"

    def __init__(self, path: str, providers: list[str]) -> None:
        if Path(path).read_bytes() == b"bad":
            raise RuntimeError("[ONNXRuntimeError] : 7 :\nINVALID_PROTOBUF")

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="x", type=self.kind, shape=[self.size, 1, 8, 8])]

    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[Any]:
        images = feed["x"]
        assert images.dtype == np.float32
        assert self.size in ("n", len(images))
        if images.shape[1] != 1:
            raise RuntimeError("expected 1 channel")
        return [np.arange(len(images)), 2 * images.reshape(len(images), -1)[:, :2]]


@pytest.mark.parametrize("size", ["n", 2, 4, 8])
def test_every_image_has_its_outputs_whatever_the_size_of_batches(
    size: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"good")
    monkeypatch.setattr(Session, "size", size)
    runtime = types.SimpleNamespace(InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    outputs = run_onnx(tmp_path / "m.onnx", IMAGES)
    assert torch.equal(outputs, 2 * torch.cat(IMAGES).flatten(1)[:, :2].double())


def test_what_is_no_model_or_takes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    runtime = types.SimpleNamespace(InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    path.write_bytes(b"bad")
    with pytest.raises(InputError, match="is no ONNX model") as caught:
        run_onnx(path, IMAGES)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"good")
    with pytest.raises(InputError, match=r"cannot take images of shape \(2, 3, 8, 8\)"):
        run_onnx(path, [torch.rand(2, 3, 8, 8)])
    monkeypatch.setattr(Session, "kind", "tensor(string)")
    with pytest.raises(InputError, match=r"takes x: tensor\(string\)"):
        run_onnx(path, IMAGES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_exported_network_gives_its_own_outputs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    path = tmp_path / "m.onnx"
    torch.onnx.export(model, (torch.zeros(4, 1, 8, 8),), str(path), dynamo=False)
    with torch.no_grad():
        wanted = model(torch.cat(IMAGES))
    assert torch.allclose(run_onnx(path, IMAGES).float(), wanted, atol=1e-5)
