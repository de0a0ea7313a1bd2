"""From a trained network to a better metric, and back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evostep
from evostep.errors import InputError
from evostep.polishing.result import IMPROVED, NO_GAIN

G = torch.Generator().manual_seed(0)
N = 600
Y = torch.arange(N) % 3
X = torch.randn(N, 4, generator=G)
X[:, :3] += 1.5 * torch.nn.functional.one_hot(Y, 3)
QUICK = {"folds": 3, "budget": 7 * 3 * 8 * 10, "population": 8, "draws": 1000}


def network(spoilt: float) -> nn.Sequential:
    """Takes the largest of the first three inputs; class 0 is favoured by `spoilt`."""
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3, 4))
        model[0].bias.copy_(torch.tensor([spoilt, 0.0, 0.0]))
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(100), Y.split(100), strict=True))


def recall(model: nn.Module) -> float:
    decided = model(X).argmax(1)
    return min(float((decided[c == Y] == c).double().mean()) for c in range(3))


def test_a_spoilt_network_is_improved_in_place_and_goes_back() -> None:
    model = network(1.5)
    before = copy.deepcopy(model.state_dict())
    result = evostep.polish(model, batches(), "worst-class-recall", **QUICK)
    assert result.verdict == IMPROVED
    assert result.gain.low > 0
    assert result.applied
    assert recall(model) > recall_of(before) + 0.2
    assert model(X).argmax(1).tolist() == decided_by(result, before).tolist()
    assert torch.equal(before["0.weight"], model.state_dict()["0.weight"])
    result.revert()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result.apply()
    assert recall(model) > recall_of(before) + 0.2


def recall_of(state: dict[str, Tensor]) -> float:
    model = network(0.0)
    model.load_state_dict(state)
    return recall(model)


def decided_by(result: evostep.Polished, state: dict[str, Tensor]) -> Tensor:
    model = network(0.0)
    model.load_state_dict(state)
    return (model(X) + result.decision.bias).argmax(1)


def test_a_network_that_no_bias_helps_is_left_as_it_is() -> None:
    model = network(0.0)
    before = copy.deepcopy(model.state_dict())
    result = evostep.polish(model, batches(), "accuracy", **QUICK)
    assert result.verdict == NO_GAIN
    assert not result.applied
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="not in a network"):
        result.apply()


def test_what_adjustment_gains_is_not_sold_as_evolution_s() -> None:
    """Trained where class 2 is rare: the frequencies tell all that there is to know."""
    often = torch.tensor([0.8, 0.17, 0.03])
    outputs = 2 * X[:, :3] + often.log()
    result = evostep.polish(None, (outputs, Y), "balanced-accuracy", prior=often, **QUICK)
    assert result.verdict == "improved by the start"
    assert "evolution added nothing confirmed" in str(result)
    assert result.start in ("logit adjustment", "tuned logit adjustment")
    assert result.prior == "given"
    assert not result.gain_over_start.confirmed
    full = -often.double().log()
    ratio = result.decision.bias / (full - full.mean())
    assert ratio.std() < 1e-6  # a multiple of the adjustment


def test_the_same_seed_says_the_same_and_numbers_are_those_of_the_folds() -> None:
    outputs = network(1.5)(X).detach()
    first, second = (
        evostep.polish(None, (outputs, Y), "macro-f1", seed=4, **QUICK) for _ in range(2)
    )
    assert first.as_dict() == second.as_dict()
    plain = float((outputs.argmax(1) == Y).double().mean())
    assert first.metrics["accuracy"][0] == pytest.approx(plain)
    worst = min(row[0] for row in first.classes)
    assert first.metrics["worst-class-recall"][0] == pytest.approx(worst)
    assert first.values["polished"] - first.values["checkpoint"] == pytest.approx(first.gain.value)


def test_a_model_without_a_last_layer_keeps_its_form() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(1.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 2

    model = Doubled()
    before = copy.deepcopy(model.state_dict())
    result = evostep.polish(model, batches(), **QUICK)
    assert result.verdict == IMPROVED
    assert "use result.decision" in str(result)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["binary", "labels"])
def test_thresholds_are_polished_as_biases_are(kind: str) -> None:
    if kind == "binary":
        outputs, targets = X[:, :1] - 2.0, (Y == 0).long()
    else:
        outputs, targets = X[:, :2] - 2.0, torch.stack([Y == 0, Y == 1], 1).long()
    result = evostep.polish(None, (outputs, targets), "macro-f1", **QUICK)
    assert result.verdict != NO_GAIN
    assert (result.decision.bias > 0.3).all()


def test_a_constraint_holds_on_the_folds() -> None:
    outputs = network(1.0)(X).detach()
    free = evostep.polish(None, (outputs, Y), "worst-class-recall", **QUICK)
    text = "worst-class-recall subject to accuracy >= parent"
    bound = evostep.polish(None, (outputs, Y), text, **QUICK)
    assert bound.metrics["accuracy"][2] >= bound.metrics["accuracy"][0] - 0.02
    assert free.gain.value > 0


def test_examples_that_it_was_trained_on_are_suspected() -> None:
    outputs = 50.0 * torch.nn.functional.one_hot(Y, 3)
    with pytest.warns(UserWarning, match="if it was trained on them"):
        evostep.polish(None, (outputs, Y), **QUICK)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": "heads"}, "did you mean head"),
        ({"population": 7}, "even number"),
        ({"budget": 10}, "budget must be at least 168"),
        ({"folds": 400}, "fewer than the 400 folds"),
        ({"metric": "cost", "costs": torch.eye(4)}, "costs has 4 rows for 3 classes"),
        ({"metric": "accuracy subject to mcc >= 0.99"}, "the checkpoint itself breaks"),
        ({"metric": "auc"}, "no decision changes"),
        ({"examples": X}, r"\(outputs, targets\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], said: str) -> None:
    call = {"examples": (X[:, :3], Y), "metric": "accuracy", **QUICK, **change}
    with pytest.raises(InputError, match=said):
        evostep.polish(None, call.pop("examples"), call.pop("metric"), **call)
