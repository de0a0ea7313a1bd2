"""Metrics x layouts x forms of targets: each against scikit-learn, on flat integer labels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.retrieval import retrieval_precision

from evostep import Evolution, Fitness, OpenAIES
from evostep.scoring.metrics import METRICS as ALL

N, C = 24, 3
METRICS: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": sk.accuracy_score,
    "balanced-accuracy": sk.balanced_accuracy_score,
    "macro-f1": functools.partial(sk.f1_score, average="macro"),
}

Array = Any


def recalls(true: Array, guess: Array, weights: Array = None) -> Array:
    labels = np.unique(true)
    return sk.recall_score(true, guess, labels=labels, average=None, sample_weight=weights)


def f_2(true: Array, guess: Array, weights: Array = None) -> float:
    average = "binary" if true.max() < 2 and guess.max() < 2 else "macro"
    return float(sk.fbeta_score(true, guess, beta=2, average=average, sample_weight=weights))


# name -> (true, decided, weights) -> the value
OF_DECISIONS: dict[str, Callable[..., float]] = {
    "worst-class-recall": lambda t, g, w=None: recalls(t, g, w).min(),
    "g-mean": lambda t, g, w=None: recalls(t, g, w).prod() ** (1 / len(np.unique(t))),
    "mcc": lambda t, g, w=None: sk.matthews_corrcoef(t, g, sample_weight=w),
    "quadratic-kappa": lambda t, g, w=None: sk.cohen_kappa_score(
        t, g, weights="quadratic", sample_weight=w
    ),
    "f-beta(2)": f_2,
}


def minus_calibration_error(true: Array, probabilities: Array) -> float:
    probs, classes = torch.as_tensor(probabilities), torch.as_tensor(true)
    error = multiclass_calibration_error(probs, classes, probs.shape[1], n_bins=15, norm="l1")
    return -float(error)


def reached(positive: Array, scores: Array, weights: Array = None) -> float:
    curve = sk.precision_recall_curve(positive, scores, sample_weight=weights)
    return max((r for p, r in zip(*curve[:2], strict=True) if p >= 0.6 - 1e-12), default=0.0)


def mean_over_classes(function: Callable[..., float]) -> Callable[..., float]:
    def mean(true: Array, probabilities: Array, *weights: Array) -> float:
        classes = range(probabilities.shape[1])
        return float(np.mean([function(true == c, probabilities[:, c], *weights) for c in classes]))

    return mean


# name -> (true, probabilities (m, classes)) -> the value
OF_OUTPUTS: dict[str, Callable[..., float]] = {
    "expected-calibration-error": minus_calibration_error,
    "recall-at-precision(0.6)": mean_over_classes(reached),
    "precision-at-k(5)": mean_over_classes(
        lambda t, s: retrieval_precision(torch.as_tensor(s), torch.as_tensor(t), top_k=5)
    ),
}


def expected(metric: str, true: Tensor, logits: Tensor) -> float:
    """Return what others give for classes (m,) and logits (m, classes)."""
    if metric in OF_OUTPUTS:
        return OF_OUTPUTS[metric](true.numpy(), logits.double().softmax(-1).numpy())
    return {**METRICS, **OF_DECISIONS}[metric](true.numpy(), logits.argmax(-1).numpy())


# name -> (positions of an example, where the classes are)
LAYOUTS: dict[str, tuple[tuple[int, ...], int]] = {
    "(n, C)": ((), 1),
    "(n, C, T)": ((5,), 1),
    "(n, T, C)": ((5,), -1),
    "(n, C, H, W)": ((4, 2), 1),
    "(n, H, W, C)": ((4, 2), -1),
    "(n, C, C), told": ((C,), 1),
    "(n, T=C, C), told": ((C,), -1),
    "(n, T=1, C)": ((1,), -1),
}


def one_hot(classes: Tensor, dim: int) -> Tensor:
    return F.one_hot(classes, C).movedim(-1, dim)


# name -> (classes (n, ...), where the classes are among the outputs) -> targets
TARGETS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "int64": lambda y, _: y,
    "int32": lambda y, _: y.int(),
    "uint8": lambda y, _: y.to(torch.uint8),
    "float": lambda y, _: y.float(),
    "one-hot": lambda y, dim: one_hot(y, dim).float(),
    "one-hot, int64": one_hot,
    "smoothed": lambda y, dim: one_hot(y, dim) * 0.9 + 0.1 / C,
    "smoothed, of another sum": lambda y, dim: one_hot(y, dim) * 0.9 + 0.02,
    "mixed": lambda y, dim: one_hot(y, dim) * 0.7 + 0.3 * one_hot((y + 1) % C, dim),
}


def classes(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return logits (n, ..., C) and true classes (n, ...)."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(C, (N, *shape), generator=generator)
    logits = torch.randn(N, *shape, C, generator=generator) + F.one_hot(true, C)
    return logits, true


def scored(outputs: Tensor, truth: Tensor, metric: str, **options: Any) -> float:
    """Score outputs that a model gives as they are, in two batches that are not alike."""
    batches = list(zip(outputs.split(19), truth.split(19), strict=True))
    fitness = Fitness(nn.Identity(), batches, metric, **options)
    value = fitness()
    again = fitness.score(fitness.examples())
    assert again.value == value, "how it is read does not change"
    if again.per_example is not None:
        assert float(again.per_example.mean()) == value
    return value


@pytest.mark.parametrize(
    ("metric", "layout", "form"), list(itertools.product(METRICS, LAYOUTS, TARGETS))
)
def test_classes(metric: str, layout: str, form: str) -> None:
    shape, dim = LAYOUTS[layout]
    logits, true = classes(shape)
    options = {"class_dim": dim} if "told" in layout else {}
    value = scored(logits.movedim(-1, dim), TARGETS[form](true, dim), metric, **options)
    guess = logits.argmax(-1).flatten()
    assert value == pytest.approx(METRICS[metric](true.flatten(), guess), abs=1e-6)


@pytest.mark.parametrize(("metric", "layout"), list(itertools.product(METRICS, LAYOUTS)))
def test_classes_of_which_some_do_not_count(metric: str, layout: str) -> None:
    shape, dim = LAYOUTS[layout]
    logits, true = classes(shape)
    counted = torch.rand(true.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    for mark in (-100, 255):
        options: dict[str, Any] = {"class_dim": dim} if "told" in layout else {}
        if mark != -100:
            options["loss"] = nn.CrossEntropyLoss(ignore_index=mark)
        targets = torch.where(counted, true, mark)
        value = scored(logits.movedim(-1, dim), targets, metric, **options)
        expected = METRICS[metric](true[counted], logits.argmax(-1)[counted])
        assert value == pytest.approx(expected, abs=1e-6)


MORE = [*OF_DECISIONS, *OF_OUTPUTS]
OF_NUMBERS = [name for name, metric in ALL.items() if metric.decomposes != "texts"]


def test_every_metric_with_a_name_is_here() -> None:
    known = {name.partition("(")[0] for name in [*METRICS, *MORE, "neg-loss"]}
    assert known == {name.partition("(")[0] for name in OF_NUMBERS}  # texts: test_texts


@pytest.mark.parametrize(
    ("metric", "layout", "form"),
    [
        *((m, "(n, C, H, W)", "int64") for m in MORE),
        *((m, layout, "int64") for m in ("mcc", *OF_OUTPUTS) for layout in LAYOUTS),
        *((m, "(n, T, C)", form) for m in ("mcc", "precision-at-k(5)") for form in TARGETS),
    ],
)
def test_more_metrics_of_classes(metric: str, layout: str, form: str) -> None:
    shape, dim = LAYOUTS[layout]
    logits, true = classes(shape)
    options = {"class_dim": dim} if "told" in layout else {}
    value = scored(logits.movedim(-1, dim), TARGETS[form](true, dim), metric, **options)
    assert value == pytest.approx(expected(metric, true.flatten(), logits.reshape(-1, C)), abs=1e-6)


@pytest.mark.parametrize("metric", MORE)
def test_more_metrics_where_some_do_not_count(metric: str) -> None:
    logits, true = classes((5,))
    counted = torch.rand(true.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    wild = torch.where(counted[..., None], logits, torch.nan)
    value = scored(wild, torch.where(counted, true, -100), metric)
    assert value == pytest.approx(expected(metric, true[counted], logits[counted]), abs=1e-6)


@pytest.mark.parametrize("metric", MORE)
def test_probabilities_of_classes_are_no_logits(metric: str) -> None:
    logits, true = classes((2,))
    right = expected(metric, true.flatten(), logits.reshape(-1, C))
    for outputs in (logits.softmax(-1), logits.log_softmax(-1), logits.double().softmax(-1)):
        assert scored(outputs, true, metric) == pytest.approx(right, abs=1e-6)


BITS: dict[str, Callable[[Tensor], Tensor]] = {
    "int64": lambda b: b.long(),
    "bool": lambda b: b,
    "uint8": lambda b: b.to(torch.uint8),
    "float": lambda b: b.float(),
    "-1 and 1": lambda b: torch.where(b, 1, -1),
    "-1.0 and 1.0": lambda b: torch.where(b, 1.0, -1.0),
    "smoothed": lambda b: torch.where(b, 0.95, 0.05),
}
# name -> logits (n,) of 1 against 0 -> outputs
ONE_OUTPUT: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "(n,)": (lambda o: o, {}),
    "(n, 1)": (lambda o: o[:, None], {}),
    "(n, 2)": (lambda o: torch.stack([-o, o], 1), {}),
    "probabilities, told by the loss": (torch.sigmoid, {"loss": nn.BCELoss()}),
    "log-probabilities": (lambda o: torch.stack([-o, o], 1).log_softmax(1), {}),
    "logits in [0, 1], told by the loss": (
        lambda o: o.sigmoid(),
        {"loss": F.binary_cross_entropy_with_logits},
    ),
}


@pytest.mark.parametrize(
    ("metric", "outputs", "form", "column"),
    list(itertools.product(METRICS, ONE_OUTPUT, BITS, [False, True])),
)
def test_one_binary_label(metric: str, outputs: str, form: str, column: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(N, generator=generator) < 0.4
    logits = torch.randn(N, generator=generator) + true
    give, options = ONE_OUTPUT[outputs]
    targets = BITS[form](true)
    if form == "smoothed" and outputs in ("(n, 2)", "log-probabilities"):
        pytest.skip("no numbers of classes, nor a number for each class")
    value = scored(give(logits), targets[:, None] if column else targets, metric, **options)
    guess = torch.ones(N) if "logits in" in outputs else logits > 0
    expected = METRICS[metric](true.long(), guess.long())
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("metric", "form"), list(itertools.product(METRICS, BITS)))
@pytest.mark.parametrize("one_each", [False, True])
def test_several_labels(metric: str, form: str, one_each: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(N, 4, generator=generator) < 0.4
    if one_each:  # looks one-hot
        true = F.one_hot(true.long().argmax(1), 4).bool()
    logits = torch.randn(N, 4, generator=generator) + true
    value = scored(logits, BITS[form](true), metric, targets="labels" if one_each else "auto")
    guess, truth = (logits > 0).long().numpy(), true.long().numpy()
    if metric == "accuracy":
        expected = 1 - sk.hamming_loss(truth, guess)
    elif metric == "macro-f1":
        expected = sk.f1_score(truth, guess, average="macro")
    else:
        columns = zip(truth.T, guess.T, strict=True)
        expected = np.mean([sk.balanced_accuracy_score(t, g) for t, g in columns])
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_binary_pixels(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    true = (torch.rand(N, 3, 4, generator=generator) < 0.4).long()
    logits = torch.randn(N, 1, 3, 4, generator=generator) + true[:, None]
    expected = METRICS[metric](true.flatten(), (logits > 0).long().flatten())
    for targets in (true, true[:, None], true.float()):
        assert scored(logits, targets, metric) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", MORE)
@pytest.mark.parametrize("layout", [*ONE_OUTPUT, "(n, 1), targets (n,)"])
def test_more_metrics_of_one_binary_label(metric: str, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    true = (torch.rand(N, generator=generator) < 0.4).long()
    logits = torch.randn(N, generator=generator) + true
    give, options = ONE_OUTPUT.get(layout, ONE_OUTPUT["(n, 1)"])
    if "logits in" in layout:
        logits = logits.sigmoid()
        give = lambda o: o  # noqa: E731
    value = scored(give(logits), true, metric, **options)
    two = torch.stack([torch.zeros(N), logits], 1)
    right = expected(metric, true, two)
    if metric in ("recall-at-precision(0.6)", "precision-at-k(5)") and give(logits).shape != (N, 2):
        one = logits.double().sigmoid()
        found = (
            reached(true, one) if "recall" in metric else true[one.topk(5).indices].float().mean()
        )
        right = float(found)
    if "(n, 2)" in layout or layout == "log-probabilities":
        right = expected(metric, true, torch.stack([-logits, logits], 1))
    assert value == pytest.approx(right, abs=1e-6)


def test_several_labels_are_ranked_within_an_example_or_label_by_label() -> None:
    generator = torch.Generator().manual_seed(0)
    true = (torch.rand(N, 7, generator=generator) < 0.4).long()
    logits = torch.randn(N, 7, generator=generator) + true
    top = true.gather(1, logits.topk(3, 1).indices).double().mean()
    assert scored(logits, true, "precision-at-k(3)") == pytest.approx(float(top))
    columns = list(zip(true.T, logits.sigmoid().T, strict=True))
    by_label = np.mean([reached(t, s) for t, s in columns])
    assert scored(logits, true, "recall-at-precision(0.6)") == pytest.approx(by_label)
    errors = [minus_calibration_error(t, torch.stack([1 - s, s], 1)) for t, s in columns]
    value = scored(logits.double(), true, "expected-calibration-error")
    assert value == pytest.approx(np.mean(errors), abs=1e-6)


# Weights


KINDS: dict[str, Callable[[torch.Generator], tuple[Tensor, Tensor]]] = {
    "classes": lambda g: (torch.randn(N, C, generator=g), torch.randint(C, (N,), generator=g)),
    "tokens": lambda g: (torch.randn(N, 5, C, generator=g), torch.randint(C, (N, 5), generator=g)),
    "binary": lambda g: (torch.randn(N, generator=g), torch.randint(2, (N,), generator=g)),
    "labels": lambda g: (torch.randn(N, 6, generator=g), torch.randint(2, (N, 6), generator=g)),
}
BCE = {"loss": F.binary_cross_entropy_with_logits}


def problem(kind: str, metric: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    outputs, true = KINDS[kind](torch.Generator().manual_seed(3))
    if metric == "neg-loss" and kind in ("binary", "labels"):
        return outputs, true.float(), BCE
    return outputs, true, {}


@pytest.mark.parametrize(("metric", "kind"), list(itertools.product(OF_NUMBERS, KINDS)))
def test_weights_are_how_often_an_example_counts(metric: str, kind: str) -> None:
    outputs, true, options = problem(kind, metric)
    often = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(4))
    again = [x.repeat_interleave(often, 0) for x in (outputs, true)]
    right = Fitness(nn.Identity(), [tuple(again)], metric, **options)()
    wild = outputs.clone()
    wild[often == 0] = torch.nan  # what weighs nothing may be anything
    columns = [x.split(19) for x in (wild, true, often.float())]
    fitness = Fitness(nn.Identity(), list(zip(*columns, strict=True)), metric, **options)
    assert fitness() == pytest.approx(right, abs=1e-6)
    both = fitness.score_stacked(lambda x: torch.stack([x, -x]), 2, fitness.examples())
    assert both[0].value == pytest.approx(right, abs=1e-6)
    assert both[1].value != both[0].value or metric.startswith(("recall", "worst", "g-mean"))
    wild[often > 0] = torch.nan  # but nothing else may
    columns[0] = wild.split(19)
    fitness = Fitness(nn.Identity(), list(zip(*columns, strict=True)), metric, **options)
    assert fitness.score(fitness.examples()).failed or np.isnan(
        fitness.score(fitness.examples()).value
    )


@pytest.mark.parametrize(
    ("metric", "kind"), list(itertools.product(OF_NUMBERS, ["tokens", "labels"]))
)
def test_weights_of_targets(metric: str, kind: str) -> None:
    outputs, true, options = problem(kind, metric)
    weights = torch.randint(0, 4, true.shape, generator=torch.Generator().manual_seed(5))
    batch = {"input": outputs, "targets": true, "sample_weight": weights}
    found = Fitness(nn.Identity(), [batch], metric, **options)()
    if kind == "tokens":  # so many single tokens
        flat = [
            x.reshape(-1, *x.shape[2:]).repeat_interleave(weights.flatten(), 0)
            for x in (outputs, true)
        ]
        right = Fitness(nn.Identity(), [tuple(flat)], metric, **options)()
        assert found == pytest.approx(right, abs=1e-6)
    else:
        assert found != Fitness(nn.Identity(), [(outputs, true)], metric, **options)()
    same = {**batch, "sample_weight": torch.full(true.shape, 2.0)}
    plain = Fitness(nn.Identity(), [(outputs, true)], metric, **options)()
    if metric != "precision-at-k(5)" or kind == "labels":  # of two copies of each, another k
        assert Fitness(nn.Identity(), [same], metric, **options)() == pytest.approx(plain, abs=1e-6)


SCIKIT: dict[str, Any] = {
    "function": functools.partial(sk.f1_score, average="macro"),
    "scorer": sk.make_scorer(sk.cohen_kappa_score),
    "of probabilities": sk.log_loss,
    "kappa": functools.partial(sk.cohen_kappa_score, weights="quadratic"),
}


@pytest.mark.parametrize("metric", [*METRICS, *OF_DECISIONS, *SCIKIT])
def test_weights_weigh_as_scikit_learn_s(metric: str) -> None:
    logits, true = classes(())
    weights = torch.rand(N, generator=torch.Generator().manual_seed(6)) * 3
    weights[:4] = 0
    asked = SCIKIT.get(metric, metric)
    found = Fitness(nn.Identity(), [(logits, true, weights)], asked)()
    t, g, w = true[4:].numpy(), logits.argmax(1)[4:].numpy(), weights[4:].double().numpy()
    if metric == "of probabilities":
        right = -sk.log_loss(t, logits[4:].double().softmax(1).numpy(), sample_weight=w)
    elif metric in OF_DECISIONS:
        right = OF_DECISIONS[metric](t, g, w)
    else:
        function = {**METRICS, **SCIKIT}[metric]
        right = getattr(function, "_score_func", function)(t, g, sample_weight=w)
    assert found == pytest.approx(right, abs=1e-9)


@pytest.mark.parametrize("fraction", [False, True])
def test_a_ranking_takes_weights_as_scikit_learn_s_curve(fraction: bool) -> None:
    logits, true = torch.randn(N), torch.randint(2, (N,))
    logits = logits if fraction else logits.round()  # ties
    weights = torch.rand(N) + 0.1
    found = Fitness(nn.Identity(), [(logits, true, weights)], "recall-at-precision(0.6)", **BCE)()
    right = reached(true.numpy(), logits.numpy(), weights.numpy())
    assert found == pytest.approx(right, abs=1e-6)


# Engines


@pytest.mark.parametrize("metric", ["mcc", *OF_OUTPUTS, "cost"])
def test_engines_score_every_metric_alike(metric: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.randint(C, (40,))
    costs = {"costs": torch.rand(C, C)} if metric == "cost" else {}
    found = []
    for engine in ("inplace", "vmap"):
        torch.manual_seed(1)
        model = nn.Linear(4, C)
        fitness = Fitness(model, list(zip(x.split(16), y.split(16), strict=True)), metric, **costs)
        search = Evolution(model, OpenAIES(0.3, 0.3, population=6), engine=engine)
        found.append([r.scores for r in search.evolve(fitness, 2)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), atol=1e-6, rtol=0)


def test_costs_are_minus_their_mean() -> None:
    logits, true = classes((5,))
    table = torch.rand(C, C, generator=torch.Generator().manual_seed(2))
    mean = table[true.flatten(), logits.argmax(-1).flatten()].mean()
    assert scored(logits, true, "cost", costs=table) == pytest.approx(-float(mean), abs=1e-6)
    assert scored(logits, true, "cost", costs=table.tolist()) == pytest.approx(
        -float(mean), abs=1e-6
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no table": ({"metric": "cost"}, "needs a table: costs="),
    "a table of others": ({"metric": "cost", "costs": torch.ones(4, 4)}, "4 rows for 3 classes"),
    "a table of two rows": ({"metric": "cost", "costs": torch.ones(2, 3)}, r"square.*\(2, 3\)"),
    "texts": ({"metric": "cost", "costs": "a"}, "costs must be a table of numbers, got 'a'"),
    "a table of nothing": (
        {"metric": "mcc", "costs": torch.ones(3, 3)},
        "costs= is .* metric='mcc'",
    ),
    "no number": ({"metric": "f-beta"}, r"write f-beta\(2\), got 'f-beta'"),
    "no beta": ({"metric": "f-beta(0)"}, "finite number > 0, got 0"),
    "a word": ({"metric": "f-beta(two)"}, r"write f-beta\(2\), got 'f-beta\(two\)'"),
    "an open end": ({"metric": "f-beta(2"}, r"write f-beta\(2\)"),
    "no precision": ({"metric": "recall-at-precision(90)"}, r"in \(0, 1\], got 90"),
    "half a place": ({"metric": "precision-at-k(1.5)"}, "whole number >= 1, got 1.5"),
    "too many places": ({"metric": "precision-at-k(99)"}, "of 24 examples: k is 24 at most"),
    "a number too many": ({"metric": "mcc(2)"}, r"unknown metric 'mcc\(2\)'.*mcc"),
    "the other way": (
        {"metric": "expected-calibration-error", "higher_is_better": True},
        "lower is better for 'expected-calibration-error'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    options, words = REFUSED[case]
    logits, true = classes(())
    with pytest.raises(ValueError, match=words) as error:
        Fitness(nn.Identity(), [(logits, true)], **options)()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metric", ["accuracy", "macro-f1", "expected-calibration-error", "neg-loss"]
)
def test_weights_that_are_all_zero_are_told(metric: str) -> None:
    logits, true = classes(())
    for weights in (torch.zeros(N), torch.zeros(N, 1)):
        with pytest.raises(ValueError, match="weights of all examples are 0") as error:
            Fitness(nn.Identity(), [(logits, true, weights)], metric)()
        assert "\n" not in str(error.value)
    halves = [(logits[:9], true[:9], torch.zeros(9)), (logits[9:], true[9:], torch.ones(N - 9))]
    right = Fitness(nn.Identity(), [(logits[9:], true[9:])], metric)()
    assert Fitness(nn.Identity(), halves, metric)() == pytest.approx(right, abs=1e-9)
