"""Metrics that need more than decisions: probabilities, order, functions of others."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evostep
from evostep.errors import InputError
from evostep.polishing.bootstrap import draw_values, resample
from evostep.polishing.objective import make_objective, parse_objective
from evostep.polishing.own import own_metric
from evostep.polishing.problem import make_problem
from evostep.polishing.reach import check_reach, with_scale
from evostep.polishing.result import NO_GAIN
from evostep.polishing.starts import fit_temperature
from evostep.scoring.confusion import CONFUSION_METRICS
from evostep.scoring.outputs import OutputMetric

G = torch.Generator().manual_seed(0)
N = 240
Y = torch.arange(N) % 3
SURE = 6 * (torch.randn(N, 3, generator=G) + F.one_hot(Y, 3))  # much too sure
FEW: dict[str, Any] = {"folds": 3, "population": 4, "budget": 7 * 3 * 4 * 4, "draws": 200}
ECE = "expected-calibration-error"


def test_what_is_too_sure_is_cooled_in_the_network_and_comes_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = evostep.polish(model, [(SURE, Y)], ECE, **FEW)
    assert result.verdict != NO_GAIN
    assert result.gain.value > 0.1
    assert result.decision.scale < 0.5
    assert result.applied
    after = evostep.polishing.evaluate(model, [(SURE, Y)], draws=100).metrics[ECE]
    assert after.value < 0.5 * result.values["checkpoint"]
    result.revert()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_temperature_is_the_likeliest() -> None:
    weights = torch.rand(N, generator=G)
    for problem in (
        make_problem(SURE, Y, weights=weights),
        make_problem(SURE[:, 0], (Y == 0).long(), weights=weights),
        make_problem(SURE, F.one_hot(Y, 3), weights=weights),
    ):
        truth = Y if problem.kind == "classes" else problem.targets.view(problem.outputs.shape)

        def likelihood(log_scale: float, problem: Any = problem, truth: Any = truth) -> float:
            scaled = problem.outputs.double() * torch.tensor(log_scale).double().exp()
            if problem.kind == "classes":
                loss = F.cross_entropy(scaled, truth, reduction="none")
            else:
                loss = F.binary_cross_entropy_with_logits(scaled, truth.double(), reduction="none")
                loss = loss.sum(1)
            return -float((weights * loss).sum())

        found = fit_temperature(problem)
        assert all(likelihood(found) >= likelihood(found + step) for step in (-0.01, 0.01))


def test_a_saved_scale_serves_without_torch(tmp_path: Path) -> None:
    decision = evostep.polish(None, (SURE, Y), ECE, **FEW).decision
    decision.save(tmp_path / "decision.json")
    assert json.loads((tmp_path / "decision.json").read_text())["format"] == 2
    decided = evostep.load_decision(tmp_path / "decision.json")(SURE.numpy())
    assert decided.tolist() == decision.adjusted(SURE).argmax(1).tolist()


def test_a_scale_is_there_where_the_metric_reads_probabilities() -> None:
    problem = make_problem(SURE, Y)
    assert with_scale(problem, parse_objective(ECE)).scaled
    assert with_scale(problem, parse_objective(f"accuracy - 0.1*{ECE}")).scaled
    assert not with_scale(problem, parse_objective("accuracy")).scaled
    decided = make_objective(lambda outputs, targets: (outputs.argmax(1) == targets).sum())
    assert not with_scale(problem, decided).scaled


def of_the_order(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the share of pairs in the right order: the area under the curve."""
    high, low = outputs[targets == 1], outputs[targets == 0]
    return (high[:, None] > low).double().mean()


@pytest.mark.parametrize("metric", ["recall-at-precision(0.8)", of_the_order])
def test_what_no_decision_changes_is_refused_with_what_it_can(metric: Any) -> None:
    with pytest.raises(InputError, match=r"same value under 16 .*: take balanced-accuracy"):
        evostep.polish(None, (SURE[:, 0], (Y == 0).long()), metric, **FEW)


def test_the_order_of_several_classes_is_changed_by_biases() -> None:
    problem = make_problem(SURE, Y)
    check_reach(problem, parse_objective("recall-at-precision(0.8)"))


def test_draws_of_outputs_are_those_of_counts() -> None:
    """Accuracy as a function of outputs varies as accuracy of counts does, in groups, too."""
    own = make_objective(lambda outputs, targets: (outputs.argmax(1) == targets).double().mean())
    for groups in (None, (torch.arange(N) // 6).tolist()):
        problem = make_problem(SURE, Y, groups=groups)
        outputs = torch.stack([SURE, SURE + torch.tensor([4.0, 0, 0])])
        slow = draw_values(problem, own, outputs, draws=1000)
        fast = resample(
            problem,
            outputs.argmax(-1),
            lambda counts: CONFUSION_METRICS["accuracy"](counts, several=False),
            draws=4000,
        )
        assert slow.mean(0).tolist() == pytest.approx(fast.mean(0).tolist(), abs=0.005)
        spread = (slow[:, 0] - slow[:, 1]).std() / (fast[:, 0] - fast[:, 1]).std()
        assert 0.85 < float(spread) < 1.15


def scikit_log_loss() -> Any:
    return pytest.importorskip("sklearn.metrics").log_loss


def scikit_scorer() -> Any:
    return pytest.importorskip("sklearn.metrics").get_scorer("neg_log_loss")


def torchmetrics_ece() -> Any:
    return pytest.importorskip("torchmetrics").classification.MulticlassCalibrationError(3, 15)


LOSS = float(F.cross_entropy(SURE.double(), Y))
FOREIGN = {
    "function": (lambda: F.cross_entropy, False, LOSS),
    "scikit-learn's function": (scikit_log_loss, None, LOSS),
    "scikit-learn's scorer": (scikit_scorer, None, LOSS),
    "torchmetrics": (torchmetrics_ece, None, None),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_metrics_of_others_have_their_value_and_direction(name: str) -> None:
    make, direction, value = FOREIGN[name]
    metric = own_metric(make(), direction)
    assert not metric.higher_is_better
    if value is None:
        value = float(parse_objective(ECE).value(make_problem(SURE, Y).seen(SURE), several=False))
    found = float(metric(SURE, Y, None, kind="classes"))
    assert found == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "options", "words"),
    [
        (F.cross_entropy, {}, "looks like a loss"),
        ("accuracy", {"higher_is_better": False}, "leave higher_is_better out"),
        (lambda o, t: o.mean(), {"weights": [1.0] * N}, "cannot weigh examples"),
        (lambda o, t: torch.nan, {}, "is nan: it cannot be maximised"),
        (7, {}, "metric must be a name"),
        (lambda o, t: o[:, 99].mean(), {}, "metric <lambda> fails: IndexError: index 99 is out"),
        (lambda o: o.mean(), {}, "metric <lambda> fails: TypeError"),
        ("neg-loss", {}, "is a loss"),
        ("recall-at-precision(2)", {}, "must be in"),
    ],
)
def test_what_is_no_metric_is_one_line(metric: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        evostep.polish(None, (SURE, Y), metric, **FEW, **options)
    assert "\n" not in str(caught.value)


def test_weights_count_in_scikit_learns_metrics() -> None:
    weights = torch.rand(N, generator=G)
    each = F.cross_entropy(SURE.double(), Y, reduction="none")
    found = own_metric(scikit_log_loss())(SURE, Y, weights, kind="classes")
    assert isinstance(own_metric(scikit_log_loss()), OutputMetric)
    assert float(found) == pytest.approx(float((each * weights).sum() / weights.sum()), abs=1e-5)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("balanced_accuracy_score", {}),
        ("matthews_corrcoef", {}),
        ("cohen_kappa_score", {"weights": "quadratic"}),
        ("f1_score", {"average": "macro"}),
    ],
)
def test_functions_that_equal_a_metric_of_counts_are_measured_as_such(
    name: str, options: dict[str, Any]
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    function = getattr(metrics, name)
    found = make_objective(partial(function, **options) if options else function)
    assert not found.of_outputs
    assert found.text == name
    weights = torch.rand(N, generator=G, dtype=torch.float64)
    for targets, outputs in ((Y, SURE), (Y % 2, SURE[:, :2]), (Y % 2, SURE)):
        problem = make_problem(outputs, targets, weights=weights)
        value = found.value(found.look(problem, problem.outputs), several=False)
        theirs = function(targets, outputs.argmax(1), **options, sample_weight=weights)
        assert float(value) == pytest.approx(theirs)
    other = {"balanced_accuracy_score": {"adjusted": True}, "f1_score": {"average": "micro"}}
    assert make_objective(partial(function, **other.get(name, {"sample_weight": None}))).of_outputs
    assert make_objective(metrics.make_scorer(function, greater_is_better=False)).of_outputs
