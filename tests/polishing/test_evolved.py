"""Weights of a network, evolved on the metric, judged by what has not seen the examples."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evostep
import evostep.polishing.folds
import evostep.polishing.polish
from evostep.errors import InputError
from evostep.polishing import nested
from evostep.polishing import weights as weights_file
from evostep.polishing.result import IMPROVED, NO_GAIN

HIDDEN = 40
N = 240
QUICK: dict[str, Any] = {"space": "head", "folds": 3, "population": 8, "draws": 500}


def budget(generations: int, n: int = N, sets: int = 7) -> int:
    """What so many generations of every evolution take."""
    return sets * 2 * n * (weights_file.STOPS + generations * (QUICK["population"] + 1))


def examples(n: int, seed: int, *, informative: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    inputs = torch.randn(n, 6, generator=generator)
    if informative:
        inputs[:, :3] += 3.0 * torch.nn.functional.one_hot(labels, 3)
    return inputs, labels


def batches(inputs: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(160), labels.split(160), strict=True))


def network(*, spoilt: bool) -> nn.Sequential:
    """Features of the inputs, and a head; spoilt, it takes much of class 1 for class 0."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        if spoilt:
            inputs, labels = examples(2000, 99)
            features = model[:2](inputs)
            wanted = 4.0 * torch.nn.functional.one_hot(labels, 3).float()
            solved = torch.linalg.lstsq(features, wanted).solution.T
            model[2].bias.zero_()
            model[2].weight.copy_(solved)
            model[2].weight[0] += 1.2 * (solved[1] - solved[0])
        else:  # as often each class: of labels that are drawn, no decision does better
            features = model[:2](examples(3000, 98, informative=False)[0])
            for _ in range(300):
                decided = model[2](features).argmax(1)
                model[2].bias -= 0.2 * (decided.bincount(minlength=3) / 3000 - 1 / 3)
    return model.eval()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def same(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in now)


def recall(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).double().mean())


@pytest.fixture(scope="module")
def planted() -> tuple[nn.Module, dict[str, Tensor], evostep.Polished]:
    model = network(spoilt=True)
    before = bits(model)
    inputs, labels = examples(N, 1)
    result = evostep.polish(
        model, batches(inputs, labels), "balanced-accuracy", **QUICK, budget=budget(12)
    )
    return model, before, result


def test_a_head_that_no_bias_mends_is_evolved_and_comes_back_bit_for_bit(
    planted: tuple[nn.Module, dict[str, Tensor], evostep.Polished],
) -> None:
    model, before, result = planted
    fresh = examples(3000, 2)
    assert result.verdict == IMPROVED
    assert result.applied
    assert result.evolved
    assert result.chosen.startswith("evolution of head")
    assert result.settings["space"] == "head"
    gained = recall(model, *fresh)
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    result.revert()
    assert same(model, before)
    assert gained > recall(model, *fresh) + 0.03
    result.apply()
    assert recall(model, *fresh) == gained
    result.revert()


def null(seed: int, metric: str) -> evostep.Polished:
    """Polish a network on labels that have nothing to do with its inputs."""
    n = 120
    inputs, _ = examples(n, 1000 + seed, informative=False)
    labels = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % 3
    model = network(spoilt=False)
    before = bits(model)
    result = evostep.polish(
        model, batches(inputs, labels), metric, **QUICK, budget=budget(4, n), seed=seed
    )
    if result.verdict == NO_GAIN:
        assert same(model, before)
    return result


METRICS = ("accuracy", "worst-class-recall")


def confirmed(results: list[evostep.Polished]) -> int:
    return sum(result.verdict != NO_GAIN for result in results)


def test_luck_is_not_confirmed() -> None:
    """At most one of four at a level of 2.5%: more happens in fewer than one of 250 suites."""
    assert confirmed([null(seed, METRICS[seed % 2]) for seed in range(4)]) <= 1


@pytest.mark.slow
def test_luck_is_confirmed_in_at_most_four_of_forty() -> None:
    """At a level of 2.5%, one-sided, five or more happen in 0.3% of such simulations."""
    assert confirmed([null(100 + seed, METRICS[seed % 2]) for seed in range(40)]) <= 4


class Kept(dict[str, Any]):
    """Keeps what is finished; killed after `most` of it."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most

    def load(self, name: str) -> Any:
        return self.get(name)

    def save(self, name: str, tensors: Any) -> None:
        if len(self) >= self.most:
            raise KeyboardInterrupt
        self[name] = dict(tensors)


def quick(model: nn.Module, seed: int = 1, n: int = N, **more: Any) -> evostep.Polished:
    inputs, labels = examples(n, seed)
    options = {**QUICK, "budget": budget(2, n), **more}
    return evostep.polish(model, batches(inputs, labels), "balanced-accuracy", **options)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what is taken off for optimism, which takes a second and is not looked at."""
    monkeypatch.setattr(nested, "optimism", lambda *_, **__: torch.zeros(2).double())


@pytest.mark.usefixtures("plain")
def test_a_killed_run_goes_on_with_the_same_bits() -> None:
    model, whole = network(spoilt=True), Kept()
    before = bits(model)
    result = quick(model, store=whole)
    expected = result.as_dict()
    result.revert()
    killed = Kept(3)
    with pytest.raises(KeyboardInterrupt):
        quick(model, store=killed)
    assert same(model, before)
    assert len(killed) == 3
    killed.most = 1000
    done: list[float] = []
    again = quick(model, store=killed, watch=lambda share, _: done.append(share))
    assert again.as_dict() == expected
    assert killed.keys() == whole.keys()
    for name, found in whole.items():
        assert all(torch.equal(found[key], killed[name][key]) for key in found)
    assert done[0] > 3 / 8  # what is there is done
    assert len(done) == 4 * 2 * 2  # of the sets that were left, both sigmas


@pytest.mark.usefixtures("plain")
def test_what_another_number_of_generations_has_left_is_not_taken_up() -> None:
    store, whole = Kept(), Kept()
    quick(network(spoilt=True), store=store, budget=budget(1, N))
    other = quick(network(spoilt=True), store=store)
    assert other.as_dict() == quick(network(spoilt=True), store=whole).as_dict()
    assert {int(found["generations"]) for found in store.values()} == {2}


@pytest.mark.usefixtures("plain")
def test_labels_of_a_fold_decide_nothing_about_it() -> None:
    """Other labels in the fold that judges leave what was evolved without it as it was."""
    inputs, labels = examples(N, 1)
    first, second = Kept(), Kept()
    parts = evostep.polishing.folds.make_folds(labels, 3, 0)
    other = labels.clone()
    here = (parts == 0).nonzero().flatten()
    other[here] = labels[here].roll(7)  # as many of each class: the folds stay
    for kept, truth in ((first, labels), (second, other)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evostep.polishing.polish, "make_folds", lambda *_: parts)
            run(inputs, truth, kept)
    for name in ("evolved-0-0", "evolved-0-0-1", "evolved-0-0-2"):
        assert torch.equal(first[name]["outputs"], second[name]["outputs"]), name
    for name in ("evolved-0-1", "evolved-0-2", "evolved-0-1-2"):
        assert not torch.equal(first[name]["outputs"], second[name]["outputs"]), name


def run(inputs: Tensor, labels: Tensor, store: Kept) -> evostep.Polished:
    options = {**QUICK, "budget": budget(1)}
    model = network(spoilt=True)
    return evostep.polish(model, batches(inputs, labels), "accuracy", store=store, **options)


def test_what_is_held_out_is_judged_by_the_very_weights() -> None:
    model = network(spoilt=True)
    others = examples(600, 5)
    result = quick(model, confirm=batches(*others), budget=budget(8, sets=4), draws=2000)
    assert result.verdict == IMPROVED
    assert result.n == 600
    assert result.settings["confirm"] == "examples"
    assert result.agreement == 1.0
    assert result.optimism == (0.0, 0.0)
    now = recall(model, *others)
    assert result.metrics["accuracy"][2] == pytest.approx(now)
    result.revert()
    assert result.metrics["accuracy"][0] == pytest.approx(recall(model, *others))


def test_a_part_is_held_out_in_every_space() -> None:
    inputs, labels = examples(600, 3)
    model = network(spoilt=True)
    with torch.no_grad():
        model[2].bias[0] += 4.0
    for space in ("decision", "head"):
        result = evostep.polish(
            model,
            batches(inputs, labels),
            "balanced-accuracy",
            **{**QUICK, "space": space, "confirm": "holdout", "share": 0.4},
            budget=None if space == "decision" else budget(3, 600, sets=4),
        )
        assert result.n == 240
        assert result.verdict != NO_GAIN
        assert result.agreement == 1.0
        assert result.settings["share"] == 0.4
        assert result.applied
        result.revert()


@pytest.mark.usefixtures("plain")
def test_auto_takes_the_decision_where_that_is_enough() -> None:
    model = network(spoilt=False)
    inputs, labels = examples(N, 1)
    model = nn.Sequential(nn.Linear(6, 3), nn.Identity())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3, 6))
        model[0].bias.copy_(torch.tensor([1.5, 0.0, 0.0]))
    result = evostep.polish(
        model.eval(),
        batches(inputs, labels),
        "balanced-accuracy",
        **{**QUICK, "space": "auto"},
        budget=budget(2),
    )
    assert result.settings["space"] == "auto"
    assert {"pulls", "sigmas"} <= result.settings.keys()
    assert result.verdict != NO_GAIN
    assert result.applied
    assert result.chosen_by_fold != ()


@pytest.mark.usefixtures("plain")
def test_a_time_becomes_a_number_that_gives_the_same_bits() -> None:
    model, kept = network(spoilt=True), Kept()
    timed = quick(model, budget="1s", store=kept)
    number = timed.settings["budget"]
    assert int(kept["budget"]["number"]) == number
    timed.revert()
    counted = quick(model, budget=number)
    assert counted.as_dict() == timed.as_dict() | {"applied": counted.applied}
    counted.revert()
    with pytest.raises(InputError, match=f"at least {budget(1)}, one generation"):
        quick(model, budget=budget(1) - 1)


def test_few_weights_get_a_full_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (weights_file.FEW, weights_file.FEW + 1)
    found: list[str] = []
    for size in sizes:
        monkeypatch.setattr(weights_file.Network, "size", size)
        own = object.__new__(weights_file.Network)
        vars(own)["_population"] = 8
        found.append(type(own.strategy(0.1)).__name__)
    assert found == ["CMAES", "SNES"]


@pytest.mark.usefixtures("plain")
def test_batches_whose_weights_are_of_the_examples() -> None:
    inputs, labels = examples(N, 1)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(3)) + 0.1
    rows = list(zip(inputs.split(80), labels.split(80), weights.split(80), strict=True))
    model = network(spoilt=True)
    options = {**QUICK, "budget": budget(1)}
    inside = evostep.polish(model, rows, "accuracy", **options)
    inside.revert()
    beside = evostep.polish(model, batches(inputs, labels), "accuracy", weights=weights, **options)
    assert inside.values == beside.values
    assert inside.chosen == beside.chosen


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"confirm": "hold-out"}, "did you mean holdout"),
        ({"space": "heads"}, "did you mean head"),
        ({"confirm": [(torch.randn(9, 6), torch.arange(9) % 3)], "groups": [0] * N}, "groups="),
        ({"budget": "soon"}, "a time such as 90s"),
    ],
)
def test_bad_input_is_one_line_and_nothing_moves(more: dict[str, Any], told: str) -> None:
    model = network(spoilt=True)
    before = bits(model)
    if "groups" in more:
        more = {**more, "groups": [i // 2 for i in range(N)]}
    with pytest.raises(InputError, match=told) as error:
        quick(model, **more)
    assert "\n" not in str(error.value)
    assert same(model, before)
