"""A loss given as a metric is refused; scikit-learn's functions and scorers are known."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Fitness

torch.manual_seed(0)
X = torch.randn(60, 4)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
MODEL = nn.Linear(4, 3)
with torch.no_grad():
    OUTPUTS = MODEL(X)
GUESS = OUTPUTS.argmax(1)
BINARY = nn.Linear(4, 1)
B = (X[:, 0] > 0).long()
with torch.no_grad():
    LOGITS = BINARY(X)[:, 0]


def my_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets).sqrt()


LOSSES: list[Any] = [
    F.cross_entropy,
    nn.CrossEntropyLoss(),
    nn.KLDivLoss(),
    F.kl_div,
    functools.partial(F.nll_loss, ignore_index=0),
    my_loss,
    rmse,
]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_refused_without_a_direction(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"looks like a loss.*higher_is_better=False") as caught:
        Fitness(MODEL, [(X, Y)], loss)
    assert "\n" not in str(caught.value)


def test_a_loss_of_known_direction_is_taken() -> None:
    expected = float(F.cross_entropy(OUTPUTS, Y))
    for loss in (F.cross_entropy, nn.CrossEntropyLoss()):
        fitness = Fitness(MODEL, [(X, Y)], loss, higher_is_better=False)
        assert fitness() == pytest.approx(-expected, rel=1e-6)
    up = Fitness(MODEL, [(X, Y)], F.cross_entropy, higher_is_better=True)
    assert up() == pytest.approx(expected, rel=1e-6)


def neg_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return -F.mse_loss(outputs, targets)


def test_names_that_say_minus_are_no_losses() -> None:
    assert Fitness(BINARY, [(X, X[:, :1])], neg_mse)() < 0


PROBABILITIES = OUTPUTS.double().softmax(1).numpy()
SIGMOID = LOGITS.double().sigmoid().numpy()
of_classes: list[tuple[Any, float]] = [
    (sk.accuracy_score, sk.accuracy_score(Y, GUESS)),
    (functools.partial(sk.f1_score, average="macro"), sk.f1_score(Y, GUESS, average="macro")),
    (
        functools.partial(sk.precision_score, average="macro"),
        sk.precision_score(Y, GUESS, average="macro"),
    ),
    (sk.cohen_kappa_score, sk.cohen_kappa_score(Y, GUESS)),
    (sk.hamming_loss, -sk.hamming_loss(Y, GUESS)),
    (sk.zero_one_loss, -sk.zero_one_loss(Y, GUESS)),
    (sk.log_loss, -sk.log_loss(Y, PROBABILITIES)),
    (
        functools.partial(sk.roc_auc_score, multi_class="ovr"),
        sk.roc_auc_score(Y, PROBABILITIES, multi_class="ovr"),
    ),
    (
        sk.make_scorer(sk.fbeta_score, beta=2, average="micro"),
        sk.fbeta_score(Y, GUESS, beta=2, average="micro"),
    ),
    (sk.make_scorer(sk.hamming_loss, greater_is_better=False), -sk.hamming_loss(Y, GUESS)),
    (sk.get_scorer("neg_log_loss"), -sk.log_loss(Y, PROBABILITIES)),
    (sk.get_scorer("balanced_accuracy"), sk.balanced_accuracy_score(Y, GUESS)),
]


@pytest.mark.parametrize(("metric", "expected"), of_classes)
def test_of_classes(metric: Any, expected: float) -> None:
    batches = list(zip(X.split(7), Y.split(7), strict=True))
    assert Fitness(MODEL, batches, metric)() == pytest.approx(expected, rel=1e-6)


of_binary: list[tuple[Any, float]] = [
    (sk.precision_score, sk.precision_score(B, LOGITS > 0)),  # not recall: true comes first
    (sk.recall_score, sk.recall_score(B, LOGITS > 0)),
    (sk.roc_auc_score, sk.roc_auc_score(B, LOGITS)),
    (sk.average_precision_score, sk.average_precision_score(B, LOGITS)),
    (sk.brier_score_loss, -sk.brier_score_loss(B, SIGMOID)),
    (sk.log_loss, -sk.log_loss(B, SIGMOID)),
    (sk.hinge_loss, -sk.hinge_loss(B, LOGITS)),
    (sk.get_scorer("roc_auc"), sk.roc_auc_score(B, LOGITS)),
    (
        sk.make_scorer(lambda true, guess: float(np.mean(true > guess))),
        float(np.mean(B.numpy() > (LOGITS > 0).numpy())),
    ),
]


@pytest.mark.parametrize(("metric", "expected"), of_binary)
def test_of_binary_labels(metric: Any, expected: float) -> None:
    assert Fitness(BINARY, [(X, B.float())], metric)() == pytest.approx(expected, rel=1e-6)
    two = nn.Linear(4, 2)
    with torch.no_grad():
        two.weight[0], two.bias[0] = 0.0, 0.0
        two.weight[1], two.bias[1] = BINARY.weight[0], BINARY.bias[0]
    assert Fitness(two, [(X, B)], metric)() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "sign"),
    [
        (sk.r2_score, 1),
        (sk.mean_squared_error, -1),
        (sk.mean_absolute_error, -1),
        (sk.max_error, -1),
    ],
)
def test_of_a_regression(metric: Any, sign: int) -> None:
    for targets in (X[:, 0], X[:, :1]):
        expected = sign * metric(targets.flatten(), LOGITS)
        assert Fitness(BINARY, [(X, targets)], metric)() == pytest.approx(expected, rel=1e-5)
    assert (
        Fitness(BINARY, [(X, X[:, 0])], sk.make_scorer(rmse_of_arrays, greater_is_better=False))()
        < 0
    )


def rmse_of_arrays(true: Any, guess: Any) -> float:
    return float(np.sqrt(np.mean((true - guess) ** 2)))


def test_what_compares_no_predictions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"silhouette_score.*function on .outputs, targets"):
        Fitness(MODEL, [(X, Y)], sk.silhouette_score)


def test_a_class_is_refused() -> None:
    for kind in (torchmetrics.classification.MulticlassAccuracy, nn.CrossEntropyLoss):
        with pytest.raises(ValueError, match=rf"is the class {kind.__name__}: pass an instance"):
            Fitness(MODEL, [(X, Y)], kind)


RIGHT = float((GUESS == Y).double().mean())
RESULTS: dict[str, Any] = {
    "numpy, of each example": lambda o, t: (o.argmax(1) == t).numpy(),
    "numpy number": lambda o, t: (o.argmax(1) == t).numpy().mean(),
    "numpy of one": lambda o, t: np.array([(o.argmax(1) == t).numpy().mean()]),
    "list, of each example": lambda o, t: (o.argmax(1) == t).tolist(),
    "a column": lambda o, t: (o.argmax(1) == t)[:, None],
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_are_unambiguous(name: str) -> None:
    fitness = Fitness(MODEL, [(X, Y)], RESULTS[name])
    scores = fitness.score(fitness.examples())
    assert scores.value == pytest.approx(RIGHT)
    if "number" not in name and "of one" not in name:
        assert scores.per_example is not None


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "got None: is a `return` missing"),
        (np.zeros((3, 2)), r"got a ndarray of shape \(3, 2\)"),
        (np.zeros(7), r"got a ndarray of shape \(7,\)"),
        ({"f1": 1.0}, "got a dict"),
        ("0.5", "got a str"),
    ],
)
def test_results_that_are_none(result: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Fitness(MODEL, [(X, Y)], lambda o, t: result)()
    assert "\n" not in str(caught.value)


def test_a_bare_fitness_that_returns_nothing() -> None:
    from evostep import Evolution, OpenAIES

    search = Evolution(nn.Linear(2, 2), OpenAIES(0.1, lr=0.1, population=4))
    with pytest.raises(ValueError, match=r"a fitness must return one number, got None"):
        search.evolve(lambda: None)  # type: ignore[arg-type,return-value]
