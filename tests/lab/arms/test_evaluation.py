"""Evaluation: what is measured of a model, and by which metric."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evostep.errors import InputError
from evostep.lab.arms.evaluation import evaluate, make_fitness
from evostep.lab.data.images import ImageData
from evostep.lab.data.parts import Part, Parts
from evostep.lab.imports import resolve_metric
from evostep.lab.models import build_model
from evostep.lab.options import Options


def fresh(name: str = "mlp") -> nn.Module:
    return build_model(name, channels=1, classes=10, image_size=8, seed=0)


def test_evaluate_measures_in_eval_mode_and_leaves_no_trace(parts: Parts) -> None:
    model = fresh("small-cnn")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    measured = evaluate(model, parts.test, parts.data, Options(metric="macro-f1"))
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(parts.data.normalise(parts.test.images))
    targets = parts.test.targets
    assert measured.keys() == {"accuracy", "loss", "macro-f1"}
    assert measured["accuracy"] == pytest.approx(
        float((logits.argmax(1) == targets).float().mean())
    )
    assert measured["loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    from sklearn.metrics import f1_score

    labels = sorted({*targets.tolist(), *logits.argmax(1).tolist()})
    expected = f1_score(targets, logits.argmax(1), average="macro", labels=labels)
    assert measured["macro-f1"] == pytest.approx(expected, abs=1e-6)


def test_evaluation_in_batches_is_evaluation_at_once(parts: Parts, digits: ImageData) -> None:
    model = fresh("small-cnn").eval()
    part = Part(digits.inputs[:1100], digits.targets[:1100])  # three batches
    with torch.no_grad():
        logits = model(parts.data.normalise(part.images))
    expected = float((logits.argmax(1) == part.targets).double().mean())
    assert evaluate(model, part, parts.data, Options())["accuracy"] == expected


def test_no_examples_have_no_values(parts: Parts, digits: ImageData) -> None:
    empty = Part(digits.inputs[:0], digits.targets[:0])
    assert evaluate(fresh(), empty, parts.data, Options()) == {}


METRICS = """
import torch

class Error:
    higher_is_better = False

    def __init__(self):
        self.reset()

    def reset(self):
        self.wrong = self.n = 0

    def update(self, outputs, targets):
        self.wrong += int((outputs.argmax(1) != targets).sum())
        self.n += len(targets)

    def compute(self):
        return self.wrong / self.n

    def to(self, device):
        return self

class Undirected(Error):
    higher_is_better = None

class Picky:
    def __init__(self, classes):
        pass

def worst_class(outputs, targets):
    right = (outputs.argmax(1) == targets).double()
    return min(float(right[targets == c].mean()) for c in targets.unique())

ready = Error()
"""


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "metrics_of_evaluation.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "metrics_of_evaluation", raising=False)
    return "metrics_of_evaluation"


def test_a_metric_of_ones_own_is_turned_so_that_more_is_better(metrics: str, parts: Parts) -> None:
    model = fresh()
    for name in ("Error", "ready"):
        path = f"{metrics}:{name}"
        measured = evaluate(model, parts.test, parts.data, Options(metric=path))
        assert measured[path] == pytest.approx(measured["accuracy"] - 1)
        fitness = make_fitness(model, parts.test, parts.data, Options(metric=path))
        assert fitness() == pytest.approx(measured[path])


def test_a_metric_with_a_name_is_told_as_it_is(parts: Parts) -> None:
    model, name = fresh(), "expected-calibration-error"
    measured = evaluate(model, parts.test, parts.data, Options(metric=name))[name]
    assert 0 < measured < 1
    fitness = make_fitness(model, parts.test, parts.data, Options(metric=name))
    assert fitness() == pytest.approx(-measured), "evolution climbs"


def test_a_function_is_a_metric(metrics: str, parts: Parts) -> None:
    path = f"{metrics}:worst_class"
    measured = evaluate(fresh(), parts.test, parts.data, Options(metric=path))
    assert 0 <= measured[path] <= measured["accuracy"]


def test_metrics_that_cannot_be_made_are_refused(metrics: str) -> None:
    assert resolve_metric("accuracy") == "accuracy"
    with pytest.raises(InputError, match=f"{metrics}:Picky cannot be made without arguments.*clas"):
        resolve_metric(f"{metrics}:Picky")
    with pytest.raises(InputError, match="did you mean worst_class"):
        resolve_metric(f"{metrics}:worst_clas")


def test_fitness_is_the_metric_on_its_own_examples(parts: Parts) -> None:
    model = fresh()
    for part in (parts.fitness, parts.accept):
        fitness = make_fitness(model, part, parts.data, Options())
        assert fitness() == evaluate(model, part, parts.data, Options())["accuracy"]
        assert len(fitness.examples(0, 0)) == len(part)
