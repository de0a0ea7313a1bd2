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
        f"print(load_decision({str(path)!r})([[1.5, 0.0]]).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1]\n"


@pytest.mark.parametrize("kind", ["classes", "binary", "labels"])
def test_probabilities_are_taken_as_they_are(tmp_path: Path, kind: Kind) -> None:
    outputs = torch.randn(50, 1 if kind == "binary" else 3, generator=G, dtype=torch.float64)
    chances = outputs.softmax(1) if kind == "classes" else outputs.sigmoid()
    bias = torch.randn(outputs.shape[1], generator=G, dtype=torch.float64)
    path = tmp_path / "decision.json"
    Decision(kind, bias, "mcc", scores="probabilities").save(path)
    targets = torch.zeros(50, 3 if kind == "labels" else 1, dtype=torch.long)
    wanted = Problem(outputs, targets, kind).decide(bias)
    decide = evostep.load_decision(path)
    assert decide(chances.numpy()).tolist() == wanted.tolist()
    with pytest.raises(InputError, match=r"go from .* about probabilities: give them as they are"):
        decide(outputs.numpy())
    certain = np.eye(outputs.shape[1])[:1]  # no warning of a logarithm of 0
    assert decide(certain).shape[0] == 1


def test_what_is_not_what_was_polished_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    Decision("classes", torch.tensor([0.0, 2.0], dtype=torch.float64), "mcc").save(path)
    decide = evostep.load_decision(path)
    with pytest.raises(InputError, match=r"these are probabilities.* about logits"):
        decide([[0.9, 0.1], [0.2, 0.8]])
    assert decide([[0.9, 0.1], [0.2, 0.9]]).tolist() == [1, 1]
    with pytest.raises(InputError, match=r"NaN in 1 rows, the first is row 1 \(from 0\)"):
        decide([[3.0, 0.1], [float("nan"), 0.8]])
    with pytest.raises(InputError, match="no names"):
        decide.names([[3.0, 0.1]])
    Decision("classes", torch.zeros(2).double(), "mcc", scores="probabilities").save(path)
    with pytest.raises(InputError, match=r"row 1 \(from 0\) sum to 0.7"):
        evostep.load_decision(path)([[0.9, 0.1], [0.2, 0.5]])


def test_names_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    told = {"format": 3, "scores": "probabilities", "metric": "mcc"}
    cases = [
        ("classes", ["ham", "spam"], [[0.9, 0.1], [0.4, 0.6]], ["ham", "spam"]),
        ("binary", ["ham", "spam"], [[0.1], [0.6]], ["ham", "spam"]),
        ("labels", ["red", "blue"], [[0.9, 0.8], [0.1, 0.2]], [["red", "blue"], []]),
    ]
    for kind, classes, scores, wanted in cases:
        bias = [0.0] * len(scores[0])
        path.write_text(json.dumps({**told, "kind": kind, "bias": bias, "classes": classes}))
        assert evostep.load_decision(path).names(scores) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *(None, "{", "[]", json.dumps({"format": 2}), json.dumps({"format": 1, "kind": "classes"})),
        json.dumps({"format": 3, "kind": "classes", "bias": [0, 1], "scores": "ranks"}),
        json.dumps({"format": 1, "kind": "classes", "bias": [0, 1], "classes": ["one"]}),
    ],
)
def test_what_is_no_decision_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "decision.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="is no decision"):
        evostep.load_decision(path)
