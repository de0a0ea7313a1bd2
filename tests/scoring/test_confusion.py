"""Metrics of decisions against scikit-learn's, and on many decisions at once."""

import pytest
import torch
from sklearn import metrics
from torch import Tensor

from evostep.scoring.confusion import CONFUSION_METRICS, cost, count, f_beta

GENERATOR = torch.Generator().manual_seed(0)
N, C = 300, 4
TRUE = torch.randint(C, (N,), generator=GENERATOR)
DECIDED = torch.where(
    torch.rand(N, generator=GENERATOR) < 0.6, TRUE, torch.randint(C, (N,), generator=GENERATOR)
)
WEIGHTS = torch.rand(N, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(2, (N, 3), generator=GENERATOR)
GUESSES = torch.randint(2, (N, 3), generator=GENERATOR)

OF_CLASSES = {
    "accuracy": metrics.accuracy_score,
    "balanced-accuracy": metrics.balanced_accuracy_score,
    "worst-class-recall": lambda t, d, sample_weight=None: metrics.recall_score(
        t, d, average=None, sample_weight=sample_weight
    ).min(),
    "g-mean": lambda t, d, sample_weight=None: (
        metrics.recall_score(t, d, average=None, sample_weight=sample_weight).prod() ** (1 / C)
    ),
    "macro-f1": lambda t, d, sample_weight=None: metrics.f1_score(
        t, d, average="macro", sample_weight=sample_weight
    ),
    "mcc": metrics.matthews_corrcoef,
    "quadratic-kappa": lambda t, d, sample_weight=None: metrics.cohen_kappa_score(
        t, d, weights="quadratic", sample_weight=sample_weight
    ),
}


@pytest.mark.parametrize("name", CONFUSION_METRICS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_classes_are_measured_as_scikit_learn_does(name: str, weights: Tensor | None) -> None:
    given = None if weights is None else weights.numpy()
    right = OF_CLASSES[name](TRUE.numpy(), DECIDED.numpy(), sample_weight=given)
    counts = count(DECIDED, TRUE, C, weights)
    assert float(CONFUSION_METRICS[name](counts, several=False)) == pytest.approx(right)


def test_several_labels_are_measured_one_by_one() -> None:
    counts = count(GUESSES, LABELS, 2)
    recalls = metrics.recall_score(LABELS, GUESSES, average=None)
    f1 = metrics.f1_score(LABELS, GUESSES, average="macro")
    worst = CONFUSION_METRICS["worst-class-recall"](counts, several=True)
    assert float(worst) == pytest.approx(recalls.min())
    assert float(CONFUSION_METRICS["macro-f1"](counts, several=True)) == pytest.approx(f1)
    right = (LABELS == GUESSES).double().mean()
    assert float(CONFUSION_METRICS["accuracy"](counts, several=True)) == pytest.approx(right)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_f_beta_is_the_positive_class_s_or_the_mean_of_all(beta: float) -> None:
    binary = metrics.fbeta_score(TRUE > 1, DECIDED > 1, beta=beta)
    counts = count((DECIDED > 1).long(), (TRUE > 1).long(), 2)
    assert float(f_beta(beta)(counts, several=False)) == pytest.approx(binary)
    macro = metrics.fbeta_score(TRUE, DECIDED, beta=beta, average="macro")
    assert float(f_beta(beta)(count(DECIDED, TRUE, C), several=False)) == pytest.approx(macro)


def test_a_cost_is_the_mean_of_its_table() -> None:
    table = torch.arange(C * C).view(C, C).double()
    metric = cost(table)
    mean = table[TRUE, DECIDED].mean()
    assert float(metric(count(DECIDED, TRUE, C), several=False)) == pytest.approx(float(mean))
    assert not metric.higher_is_better


def test_many_decisions_are_counted_as_one_by_one() -> None:
    many = torch.stack([DECIDED, TRUE, DECIDED.flip(0)])
    often = torch.stack([WEIGHTS, torch.ones(N), WEIGHTS.flip(0)])
    counts = count(many, TRUE, C, often)
    for i in range(3):
        alone = count(many[i], TRUE, C, often[i])
        torch.testing.assert_close(counts[i], alone)
    several = count(torch.stack([GUESSES, LABELS]), LABELS, 2)
    assert several.shape == (2, 3, 2, 2)
    assert several[1].diagonal(dim1=-2, dim2=-1).sum() == LABELS.numel()


def test_classes_that_do_not_occur_are_left_out() -> None:
    counts = count(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
    assert float(CONFUSION_METRICS["balanced-accuracy"](counts, several=False)) == 0.75
    assert float(CONFUSION_METRICS["worst-class-recall"](counts, several=False)) == 0.5


@pytest.mark.parametrize("table", [torch.ones(2, 3), torch.tensor([[0.0, torch.nan], [1.0, 0.0]])])
def test_a_table_that_is_none_is_refused(table: Tensor) -> None:
    with pytest.raises(ValueError, match="costs must be"):
        cost(table)
