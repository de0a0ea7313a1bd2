"""Methods: each is an arm by name, and its file under configs/arms says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from evostep.cli import make_options, make_parser
from evostep.lab.arms import make_arms
from evostep.lab.methods import METHODS, list_methods, read_setting, strategy_settings, write_setting
from evostep.lab.options import Options

ARMS = Path(__file__).parents[2] / "configs" / "arms"


def _arms_of_file(path: Path, out: Path) -> list[dict[str, object]]:
    parsed = make_parser().parse_args(["compare", "--config", str(path), "--out", str(out)])
    return [arm.describe() for arm in make_arms(make_options(parsed.compare))]


def test_every_method_has_a_file_and_every_file_a_method() -> None:
    assert {path.stem for path in ARMS.glob("*.yaml")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_file_of_an_arm_says_what_its_name_means(name: str, tmp_path: Path) -> None:
    by_name = [arm.describe() for arm in make_arms(Options(arms=name))]
    assert _arms_of_file(ARMS / f"{name}.yaml", tmp_path) == by_name


def test_the_list_names_every_method_with_source_and_defaults() -> None:
    text = list_methods()
    for name, method in METHODS.items():
        assert f"{name}: {method.summary}" in text
        assert method.source in text
        if method.strategy is not None:
            assert type(method.strategy).__name__ in text


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.strategy is not None])
def test_settings_are_read_back_as_they_were_written(name: str) -> None:
    strategy = METHODS[name].strategy
    assert strategy is not None
    for setting in strategy_settings(strategy):
        value = getattr(strategy, setting)
        if isinstance(value, int | float):
            continue
        assert read_setting(setting, write_setting(value)) == value


def test_a_rank_and_a_kind_of_safety_can_be_written_in_yaml() -> None:
    arms = make_arms(
        Options(
            arms=[
                {"method": "low-rank-es", "strategy": {"noise": "low-rank-4"}},
                {"method": "mutation-safe", "strategy": {"scale": "safe-abs"}},
            ]
        )
    )
    described = [arm.describe()["strategy"] for arm in arms]
    assert described[0]["noise"] == "LowRank(rank=4)"
    assert "kind='abs'" in described[1]["scale"]
