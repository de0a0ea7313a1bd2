"""Budgets: what an arm costs, told apart from how it is run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evostep.lab.arms.arm import Arm, make_arms
from evostep.lab.arms.budget import (
    Sizes,
    arm_cost,
    budgets,
    common_budget,
    epoch_cost,
    generation_cost,
)
from evostep.lab.options import Options

SIZES = Sizes(train=100, fitness=40, accept=0, test=50)
WITH_ACCEPT = Sizes(train=100, fitness=40, accept=20, test=50)
ALL = "sgd,sgd-all,mutation,openai-es"


def arms_of(**options: object) -> dict[str, Arm]:
    chosen = Options(**{"arms": ALL, "population": 4, **options})  # type: ignore[arg-type]
    return {arm.label: arm for arm in make_arms(chosen)}


def test_a_gradient_example_costs_three_and_only_sgd_all_sees_the_other_parts() -> None:
    arms = arms_of()
    assert epoch_cost(arms["sgd"], WITH_ACCEPT) == 300
    assert epoch_cost(arms["openai-es"], WITH_ACCEPT) == 300
    assert epoch_cost(arms["sgd-all"], WITH_ACCEPT) == 3 * (100 + 40 + 20)


def test_a_generation_pays_for_members_parent_and_acceptance() -> None:
    arms = arms_of()
    assert generation_cost(arms["sgd"], SIZES) == 0
    # the best child was scored already, the step of OpenAI-ES was not
    assert generation_cost(arms["mutation"], SIZES) == 5 * 40
    assert generation_cost(arms["openai-es"], SIZES) == 6 * 40
    # parent and candidate on the accept examples
    assert generation_cost(arms["mutation"], WITH_ACCEPT) == 5 * 40 + 2 * 20
    assert generation_cost(arms["openai-es"], WITH_ACCEPT) == 5 * 40 + 2 * 20


def test_a_rule_that_asks_for_no_scores_costs_nothing() -> None:
    arms = arms_of(accept="always")
    for sizes in (SIZES, WITH_ACCEPT):
        assert generation_cost(arms["mutation"], sizes) == 5 * 40
        assert generation_cost(arms["openai-es"], sizes) == 5 * 40


def test_the_common_budget_is_what_the_costliest_arm_needs() -> None:
    arms = arms_of(epochs=10, evolve_from=6, every=2, generations=3)
    assert arm_cost(arms["sgd"], SIZES) == 3000
    assert arm_cost(arms["sgd-all"], SIZES) == 4200
    assert arm_cost(arms["openai-es"], SIZES) == 3000 + 2 * 3 * 240
    every = list(arms.values())
    assert common_budget(every, SIZES) == 4440
    assert budgets(every, SIZES, equal=True) == dict.fromkeys(arms, 4440)
    assert budgets(every, SIZES, equal=False) == dict.fromkeys(arms, None)


@given(
    epochs=st.integers(1, 30),
    start=st.integers(0, 30),
    every=st.integers(1, 5),
    generations=st.integers(0, 4),
    population=st.integers(1, 8).map(lambda half: 2 * half),
    accept=st.integers(0, 50),
)
def test_the_cost_of_a_run_is_the_sum_over_its_epochs(
    epochs: int, start: int, every: int, generations: int, population: int, accept: int
) -> None:
    start = min(start, epochs)
    sizes = Sizes(train=100, fitness=40, accept=accept, test=50)
    arms = arms_of(
        epochs=epochs,
        evolve_from=start,
        every=every,
        generations=generations,
        population=population,
    )
    costs = {}
    for label, arm in arms.items():
        cost = 0
        for epoch in range(epochs):
            cost += epoch_cost(arm, sizes)
            evolves = epoch >= start and (epoch - start + 1) % every == 0
            cost += generation_cost(arm, sizes) * (generations if evolves else 0)
        costs[label] = cost
        assert arm_cost(arm, sizes) == cost
    assert common_budget(list(arms.values()), sizes) == max(costs.values())
    assert costs["sgd"] <= costs["mutation"] <= costs["openai-es"]


@pytest.mark.parametrize("label", ["sgd", "sgd-all"])
def test_sizes_of_training(label: str) -> None:
    expected = 160 if label == "sgd-all" else 100
    assert WITH_ACCEPT.training(arms_of()[label]) == expected
