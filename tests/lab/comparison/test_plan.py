"""A plan: everything is checked, and nothing is written, before anything runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.options import Options


def lost(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float("nan")


TINY: dict[str, Any] = {
    "model": "mlp",
    "train_size": 100,
    "test_size": 50,
    "fitness_size": 40,
    "epochs": 3,
    "evolve_from": 2,
    "generations": 2,
    "population": 4,
    "seeds": 2,
    "threads": 1,
}


def plan_of(**options: Any) -> Plan:
    return make_plan(Options(**{**TINY, **options}))


def test_a_plan_has_what_a_comparison_needs() -> None:
    plan = plan_of(arms="sgd,sgd-all,mutation,openai-es", accept_size=20, seeds="4:6")
    assert plan.seeds == [4, 5]
    assert [arm.label for arm in plan.arms] == ["sgd", "sgd-all", "mutation", "openai-es"]
    sizes = plan.sizes
    assert (sizes.train, sizes.fitness, sizes.accept, sizes.test) == (100, 40, 20, 50)
    assert plan.device == torch.device("cpu")
    # sgd-all: three epochs of 160 examples; openai-es: 3 * 300 + 2 * (5 * 40 + 2 * 20)
    assert set(plan.budgets.values()) == {max(3 * 3 * 160, 900 + 2 * 240)}


def test_seeds_have_splits_of_their_own() -> None:
    plan = plan_of()
    first, second = (plan.splits[seed].indices() for seed in (0, 1))
    assert first != second
    for splits in (first, second):
        together = [i for part in splits.values() for i in part]
        assert len(together) == len(set(together)) == 190


def test_arms_that_train_alike_share_a_trunk() -> None:
    plan = plan_of(arms=["sgd", "sgd-all", "mutation", {"method": "sgd", "label": "x", "lr": 0.5}])
    labels = [labels for _, labels in plan.trunks.values()]
    assert labels == [["sgd", "mutation"], ["sgd-all"], ["x"]]
    for key, (training, _) in plan.trunks.items():
        assert training.key == key


def test_without_equal_budgets_there_is_none() -> None:
    assert set(plan_of(equal_budget=False).budgets.values()) == {None}


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        plan_of(threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# What makes two comparisons the same


def test_identity_is_plain_and_tells_settings_apart() -> None:
    def identity(**options: Any) -> str:
        return json.dumps(plan_of(**options).identity(), default=str)

    same = identity()
    assert identity() == same
    for options in (
        {"lr": 0.5},
        {"sigma": 0.5},
        {"epochs": 4},
        {"train_size": 90},
        {"metric": "macro-f1"},
        {"accept": "always"},
        {"equal_budget": False},
    ):
        assert identity(**options) != same


def test_identity_leaves_out_what_may_change() -> None:
    def options_of(**options: Any) -> Any:
        return plan_of(**options).identity()["options"]

    assert options_of(seeds=1, device="cpu", arms="sgd", threads=None) == options_of()


# What is refused


METRICS = """
class Undirected:
    higher_is_better = None
    def update(self, outputs, targets): pass
    def compute(self): return 0.0
    def reset(self): pass
    def to(self, device): return self

number = 3
"""


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics_of_plan.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("metrics")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "digit"}, "unknown data 'digit': did you mean digits"),
        ({"model": "mpl"}, "unknown model 'mpl': did you mean mlp"),
        ({"metric": "acuracy"}, "--metric acuracy: .*did you mean accuracy"),
        ({"metric": "f-beta(0)"}, r"--metric f-beta\(0\): .*finite number > 0, got 0"),
        ({"metric": "precision-at-k(900)"}, r"precision-at-k\(900\) of \d+ examples: k is"),
        ({"metric": "metrics_of_plan:Undirected"}, "pass --higher-is-better True or False"),
        ({"metric": "metrics_of_plan:number"}, "--metric metrics_of_plan:number: .*got 3"),
        ({"metric": "torchmetrics:MeanMetric"}, "MeanMetric .*pass --higher-is-better"),
        ({"metric": "torchmetrics:F1Score"}, "cannot be made without arguments.*'task'"),
        ({"metric": "accuracy", "higher_is_better": False}, "leave higher_is_better out"),
        ({"train_size": 5000}, r"5090 examples, but digits has 1797 to share: give smaller"),
        ({"fitness_size": 5000}, "digits has 1797 to share"),
        ({"accept_size": 5000}, "digits has 1797 to share"),
        ({"test_size": 5000}, "digits has 1797 to share"),
        ({"fitness_size": 0}, "--fitness-size is 0, but mutation, openai-es score on these"),
        ({"evolve_from": 3}, "arm 'mutation' never evolves: with --evolve-from 3.*past the end"),
        ({"every": 2}, "arm 'mutation' never evolves: with --evolve-from 2 and --every 2"),
        ({"space": "bais"}, "arm 'mutation': 'bais' matches no parameter"),
        ({"train_only": "bais"}, "arm 'sgd': 'bais' matches no parameter"),
        ({"train_only": " , "}, "arm 'sgd': .*chooses nothing"),
        ({"device": "gpu"}, "--device gpu cannot be used"),
        ({"device": "meta"}, "--device meta cannot be used"),
        ({"pretrained": True}, "mlp has no pretrained weights"),
        ({"init_from": Path("none.safetensors")}, "no file none.safetensors"),
        ({"seeds": "1,1"}, "--seeds '1,1'"),
        ({"arms": "sgdd"}, "unknown arm 'sgdd'"),
    ],
)
def test_what_cannot_be_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        plan_of(**options)
    assert "\n" not in str(caught.value)


def test_pretrained_and_init_from_exclude_each_other() -> None:
    with pytest.raises(InputError, match="--pretrained and --init-from exclude each other"):
        plan_of(pretrained=True, init_from=Path("x.safetensors"))


@pytest.mark.usefixtures("metrics")
def test_a_direction_makes_a_metric_known() -> None:
    plan = plan_of(metric="metrics_of_plan:Undirected", higher_is_better=True)
    assert plan.options.higher_is_better is True


def test_a_metric_that_is_no_number_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("math.lost", lost, raising=False)
    with pytest.warns(UserWarning, match=r"--metric math:lost is nan on a trial") as told:
        plan_of(metric="math:lost", higher_is_better=True)
    assert len(told) == 1


def test_controls_alone_need_no_evolution() -> None:
    plan = plan_of(arms="sgd,sgd-all", fitness_size=0, evolve_from=3, every=9)
    assert plan.sizes.fitness == 0
    assert plan_of(arms="sgd,mutation", generations=0, evolve_from=3).budgets["mutation"] == 900


def test_a_plan_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan_of().device = torch.device("cpu")  # type: ignore[misc]
