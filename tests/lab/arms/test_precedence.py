"""Arms: which method with which settings, and who shares a trunk."""

import dataclasses
import json
from typing import Any

import pytest

from evostep import AllWeights, Always, Improves, Only, OpenAIES, RandomMutation
from evostep.errors import InputError
from evostep.lab.arms.arm import Arm
from evostep.lab.arms.methods import METHODS
from evostep.lab.arms.precedence import make_arms, make_space
from evostep.lab.options import ArmEntry, Options
from evostep.spaces.span import Span


def only_arm(entry: ArmEntry, **options: Any) -> Arm:
    (arm,) = make_arms(Options(arms=[entry], **options))
    return arm


def test_arms_come_in_the_order_in_which_they_were_named() -> None:
    arms = make_arms(Options(arms=" openai-es, sgd ,mutation,"))
    assert [arm.label for arm in arms] == ["openai-es", "sgd", "mutation"]
    assert [arm.method for arm in arms] == ["openai-es", "sgd", "mutation"]


def test_a_control_has_no_strategy_and_never_evolves() -> None:
    for name, all_data in (("sgd", False), ("sgd-all", True)):
        arm = only_arm(name, epochs=30, evolve_from=0, generations=5)
        assert arm.strategy is None
        assert not any(arm.schedule.generations(epoch) for epoch in range(30))
        assert arm.training.all_data is all_data


def test_an_evolving_arm_takes_schedule_space_and_rule_from_the_options() -> None:
    arm = only_arm(
        "mutation", every=2, generations=3, evolve_from=4, epochs=9, accept="always", space="head"
    )
    assert [arm.schedule.generations(epoch) for epoch in range(9)] == [0, 0, 0, 0, 0, 3, 0, 3, 0]
    assert isinstance(arm.accept, Always)
    assert repr(arm.space) == repr(Only("head"))
    assert isinstance(only_arm("mutation").accept, Improves)


def test_sigma_and_population_apply_to_all_methods() -> None:
    mutation, es = make_arms(Options(arms="mutation,openai-es", sigma=0.5, population=6))
    assert mutation.strategy == dataclasses.replace(
        METHODS["mutation"].strategy,  # type: ignore[type-var]
        sigma=0.5,
        population=6,
    )
    assert isinstance(es.strategy, OpenAIES)
    assert (es.strategy.sigma, es.strategy.population, es.strategy.size) == (0.5, 6, 6)


def test_the_more_particular_setting_wins() -> None:
    def sigmas(*arms: ArmEntry, **options: Any) -> list[float]:
        made = make_arms(Options(arms=list(arms), **options))
        return [arm.strategy.sigma for arm in made]  # type: ignore[union-attr]

    defaults = [METHODS[name].strategy.sigma for name in ("mutation", "openai-es")]  # type: ignore[union-attr]
    assert sigmas("mutation", "openai-es") == defaults
    of_method = {"openai-es": {"sigma": 0.3}}
    assert sigmas("mutation", "openai-es", strategies=of_method) == [defaults[0], 0.3]
    assert sigmas("mutation", "openai-es", strategies=of_method, sigma=0.7) == [0.7, 0.3]
    own = {"method": "openai-es", "sigma": 0.1}
    assert sigmas(own, strategies=of_method, sigma=0.7) == [0.1]
    innermost = {**own, "strategy": {"sigma": 0.2}}
    assert sigmas(innermost, strategies=of_method, sigma=0.7) == [0.2]


def test_one_method_twice_under_two_labels_with_settings_of_their_own() -> None:
    small, big = make_arms(
        Options(
            arms=[
                {"method": "mutation", "label": "small", "sigma": 0.01, "generations": 1},
                {
                    "method": "mutation",
                    "label": "big",
                    "population": 3,
                    "strategy": {"sigma": 0.5, "noise": "uniform"},
                    "space": "head",
                    "accept": "always",
                },
            ],
            evolve_from=0,
        )
    )
    assert small.strategy == RandomMutation(sigma=0.01, population=16)
    assert big.strategy == RandomMutation(sigma=0.5, population=3, noise="uniform")
    assert (small.label, big.label) == ("small", "big")
    assert (small.schedule.evolution, big.schedule.evolution) == (1, 5)
    assert isinstance(small.space, AllWeights)
    assert isinstance(big.space, Only)
    assert isinstance(big.accept, Always)
    assert small.training.key == big.training.key


def test_children_of_a_mutation_are_read_as_its_population() -> None:
    entry = {"method": "mutation", "strategy": {"children": 3}}
    with pytest.warns(FutureWarning, match="children of arm 'mutation' is now called") as caught:
        arm = only_arm(entry)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert arm.strategy == RandomMutation(sigma=0.02, population=3)


def test_making_arms_leaves_the_entries_as_they_were() -> None:
    entry: dict[str, Any] = {"method": "mutation", "label": "a", "strategy": {"sigma": 0.1}}
    before = json.dumps(entry)
    make_arms(Options(arms=[entry]))
    assert json.dumps(entry) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.02},
        {"momentum": 0.5},
        {"weight_decay": 1e-4},
        {"batch": 32},
        {"optimizer": "adam"},
        {"augment": "shift"},
        {"train_only": "head"},
    ],
)
def test_arms_share_a_trunk_if_and_only_if_they_train_alike(settings: dict[str, Any]) -> None:
    plain, evolving, other = make_arms(
        Options(arms=["sgd", "mutation", {"method": "sgd", "label": "other", **settings}])
    )
    assert plain.training.key == evolving.training.key
    assert other.training.key != plain.training.key


def test_keys_of_trunks_tell_close_numbers_apart() -> None:
    keys = {
        only_arm("sgd", lr=lr).training.key for lr in (0.1234567, 0.12345671, 0.1, 1e-5, 1, 1.0)
    }
    assert len(keys) == 5  # 1 and 1.0 are one number
    assert only_arm("sgd", lr=0.01).training.key == "sgd-lr0.01-m0.9-b64"
    assert only_arm("sgd-all").training.key.endswith("all-data")
    patterns = ("norm", "norm*", "norm,head", "norm-head", "n/m", "")
    keys = {only_arm("sgd", train_only=only).training.key for only in patterns}
    assert len(keys) == len(patterns)
    assert not any(set("/*,") & set(key) for key in keys)  # they name folders


def test_a_description_is_plain_data_and_tells_all_that_matters() -> None:
    entry = {"method": "openai-es", "label": "x", "sigma": 0.3, "lr": 0.5}
    described = only_arm(entry).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["label"] == "x"
    assert described["method"] == "openai-es"
    assert described["training"]["lr"] == 0.5
    assert described["strategy"]["name"] == "OpenAIES"
    assert described["strategy"]["sigma"] == 0.3
    assert described["accept"] == "Improves(every='generation')"
    assert "strategy" not in only_arm("sgd").describe()


REFUSED: list[tuple[Any, str]] = [
    ("sgdd", "unknown arm 'sgdd': did you mean sgd"),
    (",", "--arms is empty: choose from sgd, sgd-all, "),
    ([], "--arms is empty"),
    (
        [{"method": "esgd", "train_only": "head"}],
        "arm 'esgd': gradients move all weights of its individuals, and --train-only head",
    ),
    ("sgd,sgd", "two arms are called 'sgd': give each its own label"),
    ([{"label": "x"}], "an arm needs a method"),
    ([{"method": 3}], "an arm needs a method"),
    ([{"method": "sgd", "label": "a/b"}], "label 'a/b' may hold letters"),
    ([{"method": "sgd", "label": ""}], "label '' may hold letters"),
    ([{"method": "sgd", "sigm": 1}], "unknown setting of arm 'sgd' 'sigm': did you mean sigma"),
    ([{"method": "sgd", "epochs": 3}], "unknown setting of arm 'sgd' 'epochs'"),
    ([{"method": "sgd", "lr": -1.0}], "arm 'sgd': --lr must be > 0, got -1.0"),
    ([{"method": "sgd", "lr": "fast"}], "arm 'sgd': --lr must be a number, got 'fast'"),
    ([{"method": "sgd", "optimizer": "x"}], "arm 'sgd': --optimizer must be sgd or adam"),
    ([{"method": "sgd", "augment": "x"}], "arm 'sgd': --augment must be none or shift"),
    ([{"method": "sgd", "batch": 2.5}], "arm 'sgd': --batch must be a whole number, got 2.5"),
    ([{"method": "mutation", "accept": "x"}], "arm 'mutation': --accept must be improves or"),
    ([{"method": "mutation", "generations": 1.5}], "--generations must be a whole number, got 1.5"),
    ([{"method": "mutation", "space": 5}], "arm 'mutation': --space must be text or null, got 5"),
    ([{"method": "mutation", "population": True}], "--population must be a whole number"),
    ([{"method": "mutation", "population": 0}], "'mutation': population must be at least 1, got 0"),
    ([{"method": "mutation", "sigma": 0}], "sigma must be a finite number > 0, got 0"),
    ([{"method": "mutation", "strategy": 5}], "strategy of arm 'mutation' must be a mapping"),
    (
        [{"method": "mutation", "strategy": {"children": 4, "population": 4}}],
        "arm 'mutation': population and children, its old name, are both given",
    ),
    ([{"method": "openai-es", "strategy": {"children": 4}}], "unknown strategy setting of arm"),
    ([{"method": "mutation", "strategy": {"x": 1}}], "unknown strategy setting of arm 'mutation'"),
    (
        [{"method": "mutation", "strategy": {"population": 4.0}}],
        "population of arm 'mutation' must be a whole number, got 4.0",
    ),
    (
        [{"method": "openai-es", "strategy": {"antithetic": "no"}}],
        "antithetic of arm 'openai-es' must be true or false, got 'no'",
    ),
    (
        [{"method": "openai-es", "population": 5}],
        "population must be even with antithetic pairs, got 5: use 6",
    ),
    ([{"method": "sgd", "strategy": {"sigma": 1}}], "arm 'sgd' has a strategy, but"),
]


@pytest.mark.parametrize(("arms", "message"), REFUSED)
def test_an_arm_that_cannot_be_made_is_refused_by_name(arms: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_arms(Options(arms=arms))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("all", AllWeights()),
        ("", AllWeights()),
        ("head", Only("head")),
        (" head , norm,layer4.*,", Only("head", "norm", "layer4.*")),
        ("span", Span(groups="all")),
        ("span:layer", Span(groups="layer")),
    ],
)
def test_make_space(text: str, space: Any) -> None:
    assert repr(make_space(text)) == repr(space)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_makes_an_arm(name: str) -> None:
    method, arm = METHODS[name], only_arm(name, population=6, epochs=9, evolve_from=1)
    assert method.summary
    assert method.source
    assert arm.label == name
    assert json.loads(json.dumps(arm.describe())) == arm.describe()
    if arm.strategy is not None:
        assert arm.strategy.size == 6
    assert bool(sum(arm.schedule.generations(epoch) for epoch in range(9))) is method.evolves
