"""Arms that start where another ended: which may, from where, and what it costs."""

from typing import Any

import pytest

from evostep.errors import InputError
from evostep.lab.arms.arm import Arm
from evostep.lab.arms.budget import arm_cost, budgets, own_cost, settled
from evostep.lab.arms.precedence import make_arms
from evostep.lab.data.parts import Sizes
from evostep.lab.options import Options

SIZES = Sizes(train=100, fitness=40, accept=0, test=50)
EPOCHS = {"epochs": 10, "evolve_from": 6, "every": 2, "generations": 3, "population": 4}
FROM = {"start-from": "sgd-all-cosine"}


def arms_of(*arms: Any, **options: Any) -> dict[str, Arm]:
    made = make_arms(Options(arms=list(arms), **{**EPOCHS, **options}))
    return {arm.label: arm for arm in made}


def test_an_arm_that_evolves_has_all_its_generations_there_and_a_control_its_epochs() -> None:
    arms = arms_of(
        "sgd-all-cosine", {"method": "mutation", **FROM}, {"method": "sgd", "lr": 0.001, **FROM}
    )
    base, evolving, more = arms["sgd-all-cosine"], arms["mutation"], arms["sgd"]
    assert evolving.start is not None
    assert evolving.start.arm == base
    assert arm_cost(base, SIZES) == 10 * 3 * 140
    assert own_cost(evolving, SIZES) == 2 * 3 * (5 * 40)  # two phases of three, and no gradient
    assert own_cost(more, SIZES) == 4 * 300
    assert arm_cost(evolving, SIZES) == 4200 + 1200
    assert evolving.describe()["start_from"] == "sgd-all-cosine"
    assert "start_from" not in base.describe()


@pytest.mark.parametrize("budget", [None, 9000])
def test_all_that_start_there_have_the_same_further_budget(budget: int | None) -> None:
    arms = arms_of(
        "sgd-all-cosine",
        {"method": "mutation", **FROM},
        {"method": "openai-es", **FROM},
        {"method": "sgd", "schedule": "cosine", **FROM},
        {"method": "sgd-cosine", "label": "last", "start_from": "mutation"},
    )
    every = list(arms.values())
    share = budgets(every, SIZES, equal=True, budget=budget)
    whole = share["mutation"]
    assert whole == (budget or 4200 + 1200 + 1200)  # the last one starts where mutation ended
    done = {a.label: settled(a, every, SIZES, whole) for a in every}
    further = 2 * 3 * (6 * 40)  # of openai-es, the costliest of those
    starts = [done[label].start for label in ("mutation", "openai-es", "sgd")]
    assert [start and start.budget for start in starts] == 3 * [whole - further]
    assert len({start.name for start in starts if start}) == 1
    # the control itself goes on to the end of the budget, and so does its rate
    assert done["sgd-all-cosine"].training.span == (0, whole)
    assert starts[0] is not None
    assert starts[0].arm.training.span == (0, whole - further)
    assert done["sgd"].training.span == (whole - further, whole)
    last = done["last"].start
    assert last is not None
    assert last.arm.start is not None
    assert (last.budget, last.arm.start.budget) == (whole - 1200, whole - 1200 - further)


def test_a_rate_falls_over_what_the_gradient_steps_have() -> None:
    arms = arms_of("sgd-cosine", "soup-cmaes", "uniform-soup", schedule="cosine")
    sizes = Sizes(train=100, fitness=40, accept=0, test=50, calibration=30)
    every = list(arms.values())
    done = {a.label: settled(a, every, sizes, 9000) for a in every}
    assert done["sgd-cosine"].training.span == (0, 9000)
    assert done["uniform-soup"].training.span == (0, 9000 - 30)
    phase = 6 * (5 * (40 + 30)) + 2 * 40 + 30 + 2 * 40  # generations, start, verdict
    assert done["soup-cmaes"].training.span == (0, 9000 - phase)
    assert settled(every[0], every, sizes, None).training.span == (0, 10)  # epochs


REFUSED: list[tuple[list[Any], str]] = [
    (
        ["sgd-cosine", {"method": "mutation", "start-from": "sgd-cosin"}],
        "unknown start of arm 'mutation' 'sgd-cosin': did you mean sgd-cosine",
    ),
    ([{"method": "mutation", "start-from": "mutation"}], "starts from itself (mutation -> mut"),
    (
        [{"method": "sgd", "start_from": "swa"}, {"method": "swa", "start_from": "sgd"}],
        "arm 'swa' starts from itself (sgd -> swa -> sgd): let one of them begin at a trunk",
    ),
    (
        [
            {"method": "sgd", "start_from": "ema"},
            {"method": "swa", "start_from": "sgd"},
            {"method": "ema", "start_from": "swa"},
        ],
        "starts from itself (sgd -> ema -> swa -> sgd)",
    ),
    (["sgd", {"method": "mutation", "start-from": 3}], "must be the label of an arm, got 3"),
    (["sgd", {"method": "mutation", "start-from": ["sgd"]}], 'label of an arm, got ["sgd"]'),
    (
        ["sgd", {"method": "soup-cmaes", "start-from": "sgd"}],
        "arm 'soup-cmaes' mixes checkpoints of its own run, and has none where it starts from",
    ),
    (["sgd", {"method": "guided-es", "start-from": "sgd"}], "follows gradients of its own run"),
    (
        ["sgd", {"method": "mutation", "generations": 0, "start-from": "sgd"}],
        "has nothing to do there: --generations must be at least 1, got 0",
    ),
    # an arm of another model, or other data, would be no fair start: there are none
    (["sgd", {"method": "mutation", "model": "mlp", "start-from": "sgd"}], "unknown setting of"),
    (["sgd", {"method": "mutation", "data": "cifar10", "start-from": "sgd"}], "unknown setting"),
    (
        ["sgd", {"method": "mutation", "start-from": "sgd", "start_from": "sgd"}],
        "an arm sets start_from twice: leave start_from out",
    ),
]


@pytest.mark.parametrize(("arms", "message"), REFUSED)
def test_a_start_that_cannot_be_is_refused(arms: list[Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        arms_of(*arms)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [1000, 1200, 1200 + 6 * 420])
def test_a_budget_that_ends_before_the_start_is_refused(budget: int) -> None:
    arms = list(arms_of("sgd-all-cosine", {"method": "mutation", **FROM}).values())
    with pytest.raises(InputError, match=f"--budget {budget} is too small for arm") as caught:
        budgets(arms[1:], SIZES, equal=True, budget=budget)
    assert "1200 sample-forwards" in str(caught.value)
    budgets(arms[1:], SIZES, equal=True, budget=1200 + 6 * 420 + 1)


def test_individuals_with_rates_of_their_own_take_no_schedule() -> None:
    with pytest.raises(InputError, match="arm 'esgd': its individuals have learning rates of"):
        arms_of("sgd", "esgd", schedule="cosine")
    arms = arms_of("sgd", {"method": "esgd", "schedule": "constant"}, schedule="cosine")
    assert [a.training.schedule for a in arms.values()] == ["cosine", "constant"]
