"""Nobody decides about what it was trained on."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

import evostep
from evostep.errors import InputError
from evostep.polishing import out_of_fold as module
from evostep.polishing.folds import make_folds
from evostep.polishing.procedure import left_out

N = 180
Y = torch.arange(N) % 3
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
X[:, :3] += 1.5 * torch.nn.functional.one_hot(Y, 3)
FOLDS = make_folds(Y, 3, 0)
QUICK: dict[str, Any] = {"budget": 7 * 3 * 4 * 8, "population": 4, "draws": 200}


def fit(model: nn.Linear, part: Subset[Any]) -> None:
    """The class means: depends on every label that it sees."""
    inputs, targets = zip(*part, strict=True)
    x, y = torch.stack(inputs), torch.stack(targets)
    with torch.no_grad():
        model.weight.copy_(torch.stack([x[y == c].mean(0) for c in range(3)]))
        model.bias.copy_(-model.weight.square().sum(1) / 2 + torch.tensor([1.5, 0.0, 0.0]))


def run(targets: Tensor, seen: list[set[int]] | None = None) -> tuple[nn.Module, evostep.Polished]:
    def watched(model: nn.Module, part: Subset[Any]) -> None:
        if seen is not None:
            seen.append(set(part.indices))
        assert isinstance(model, nn.Linear)
        fit(model, part)

    data = TensorDataset(X, targets)
    return evostep.out_of_fold(lambda: nn.Linear(4, 3), watched, data, "macro-f1", **QUICK)


@pytest.mark.parametrize("fold", range(3))
def test_other_labels_in_a_fold_change_no_decision_about_it(
    fold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "make_folds", lambda *_: FOLDS)
    here = fold == FOLDS
    other = torch.where(here, (Y + 1) % 3, Y)
    before, after = run(Y)[1].decisions, run(other)[1].decisions
    assert torch.equal(before[:, here], after[:, here])
    assert not torch.equal(before[:, ~here], after[:, ~here])


def test_each_set_is_trained_once_and_the_last_on_everything() -> None:
    seen: list[set[int]] = []
    model, result = run(Y, seen)
    folds = make_folds(Y, 3, 0)
    wanted = [{i for i in range(N) if int(folds[i]) not in gone} for gone in [*left_out(3)[1:], ()]]
    assert seen == wanted
    assert "7 networks were trained" in result.notes
    assert result.verdict == "improved"
    assert result.applied
    plain = nn.Linear(4, 3)
    fit(plain, Subset(TensorDataset(X, Y), range(N)))
    decided = (plain(X) + result.decision.bias).argmax(1)
    assert torch.equal(model(X).argmax(1), decided)
    result.revert()
    assert torch.equal(model(X), plain(X))


class Named(Dataset[dict[str, Tensor]]):
    """Examples as dictionaries, as Hugging Face's data sets have them."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input": X[index], "labels": Y[index]}


def of_names(model: nn.Linear, part: Subset[Any]) -> None:
    fit(model, Subset(TensorDataset(X, Y), part.indices))


def linear() -> nn.Linear:
    return nn.Linear(4, 3)


def test_examples_may_have_names_or_weights_and_budgets_be_times() -> None:
    plain = run(Y)[1]
    named = evostep.out_of_fold(linear, of_names, Named(), "macro-f1", **QUICK)[1]
    assert torch.equal(named.decisions, plain.decisions)
    weights = torch.where(Y == 0, 3.0, 1.0).double()
    data = TensorDataset(X, Y, weights)
    own = evostep.out_of_fold(linear, of_names, data, "macro-f1", **QUICK)[1]
    told = evostep.out_of_fold(linear, of_names, Named(), "macro-f1", weights=weights, **QUICK)[1]
    assert own.values == told.values != plain.values
    timed = evostep.out_of_fold(
        linear, of_names, Named(), "macro-f1", **QUICK | {"budget": "0.1s"}
    )[1]
    assert timed.settings["budget"] >= 84


def test_what_it_does_not_do_is_refused() -> None:
    options: Any = {"space": "head"}
    with pytest.raises(TypeError, match="space"):
        evostep.out_of_fold(linear, of_names, Named(), "macro-f1", **QUICK, **options)
    with pytest.raises(InputError, match="prior must be 3 numbers"):  # before anything is trained
        evostep.out_of_fold(linear, lambda *_: pytest.fail("trained"), Named(), prior=[1.0, 1.0])
