"""A saved decision decides without torch as it does with it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evostep
from evostep.errors import InputError
from evostep.polishing.decision import Decision
from evostep.polishing.problem import Kind, Problem

G = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", ["classes", "binary", "labels"])
def test_it_decides_as_the_problem_does(tmp_path: Path, kind: Kind) -> None:
    columns = 1 if kind == "binary" else 3
    outputs = torch.randn(50, columns, generator=G)
    bias = torch.randn(columns, generator=G, dtype=torch.float64)
    Decision(kind, bias, "mcc").save(tmp_path / "decision.json")
    decide = evostep.load_decision(tmp_path / "decision.json")
    targets = torch.zeros(50, 3 if kind == "labels" else 1, dtype=torch.long)
    wanted = Problem(outputs, targets, kind).decide(bias)
    assert decide(outputs.numpy()).tolist() == wanted.tolist()
    assert decide(outputs.numpy()[0:1].tolist()).tolist() == wanted[:1].tolist()
    with pytest.raises(InputError, match="do not fit"):
        decide(np.zeros((2, 9)))


def test_it_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    Decision("classes", torch.tensor([0.0, 2.0], dtype=torch.float64), "mcc").save(path)
    code = (
        "import sys; sys.modules['torch'] = None; from evostep import load_decision; "
        f"print(load_decision({str(path)!r})([[1.0, 0.0]]).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1]\n"


@pytest.mark.parametrize(
    "text",
    [None, "{", "[]", json.dumps({"format": 2}), json.dumps({"format": 1, "kind": "classes"})],
)
def test_what_is_no_decision_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "decision.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="is no decision"):
        evostep.load_decision(path)
