"""Budgets: sums of what procedures say that an arm costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.budget import arm_cost, budgets, common_budget, trunk_cost
from evostep.lab.arms.precedence import make_arms
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.data.parts import Sizes
from evostep.lab.options import Options

SIZES = Sizes(train=100, fitness=40, accept=0, test=50)
WITH_ACCEPT = Sizes(train=100, fitness=40, accept=20, test=50)
ALL = "sgd,sgd-all,mutation,openai-es"


def arms_of(**options: object) -> dict[str, Arm]:
    chosen = Options(**{"arms": ALL, "population": 4, **options})  # type: ignore[arg-type]
    return {arm.label: arm for arm in make_arms(chosen)}


def epoch_cost(arm: Arm, sizes: Sizes) -> int:
    return PROCEDURES[arm.procedure].epoch_cost(arm, sizes)


def generation_cost(arm: Arm, sizes: Sizes) -> int:
    """Where a phase is nothing but generations."""
    one, two = (PROCEDURES[arm.procedure].phase_cost(arm, sizes, n) for n in (1, 2))
    assert two == 2 * one
    return one


def test_a_gradient_example_costs_three_and_only_sgd_all_sees_the_other_parts() -> None:
    arms = arms_of()
    assert epoch_cost(arms["sgd"], WITH_ACCEPT) == 300
    assert epoch_cost(arms["openai-es"], WITH_ACCEPT) == 300
    assert epoch_cost(arms["sgd-all"], WITH_ACCEPT) == 3 * (100 + 40 + 20)


def test_a_generation_pays_for_members_parent_and_acceptance() -> None:
    arms = arms_of()
    assert PROCEDURES["plain"].phase_cost(arms["sgd"], SIZES, 3) == 0
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


def test_the_trunk_is_plain_training_whatever_follows() -> None:
    arms = arms_of(arms="sgd,sgd-all,swa,esgd,mutation", epochs=10, evolve_from=6)
    costs = {label: trunk_cost(arm, WITH_ACCEPT) for label, arm in arms.items()}
    assert costs == {**dict.fromkeys(arms, 6 * 300), "sgd-all": 6 * 480}


def test_swa_pays_for_the_statistics_of_its_mean() -> None:
    arms = arms_of(arms="sgd,swa", epochs=10, evolve_from=6)
    assert arm_cost(arms["swa"], SIZES) == arm_cost(arms["sgd"], SIZES) + 100


def test_a_population_pays_for_everybody() -> None:
    """Five epochs from the trunk on are two for four individuals; offspring are of the options."""
    (arm,) = arms_of(arms="esgd", epochs=10, evolve_from=5, generations=3, every=2).values()
    assert (arm.epochs, arm.population.individuals, arm.population.offspring) == (7, 4, 4)
    training = 2 * 4 * (300 + 2 * 40)
    phase = 4 * 40 + 3 * 4 * 40
    assert arm_cost(arm, SIZES) == 5 * 300 + training + phase


@pytest.mark.parametrize(
    ("scale", "measured"), [("rms", 0), ("safe-sum", 40 * 21), ("safe-abs", 40 * 21)]
)
def test_what_a_strategy_measures_is_in_the_cost(scale: str, measured: int) -> None:
    (arm,) = arms_of(arms=[{"method": "mutation", "strategy": {"scale": scale}}]).values()
    sizes = Sizes(train=100, fitness=40, accept=0, test=50, classes=10)
    assert generation_cost(arm, sizes) == 5 * 40 + measured


def test_mixtures_pay_for_their_statistics() -> None:
    """Start: two scored, one estimated; members and step each; verdict: two scored."""
    (arm,) = arms_of(arms="soup-cycle").values()
    sizes = Sizes(train=100, fitness=40, accept=0, test=50, calibration=30)
    cost = PROCEDURES[arm.procedure].phase_cost
    generation = 4 * (40 + 30) + 40 + 30
    assert cost(arm, sizes, 3) - cost(arm, sizes, 2) == generation
    assert cost(arm, sizes, 2) - 2 * generation == 2 * 2 * 40 + 30
    assert cost(arm, sizes, 0) == 0
