"""What a comparison will take: hours, timed on a few batches, and disk."""

from typing import Any

import pytest
from torch import nn

from evostep.lab.comparison import estimate as estimate_module
from evostep.lab.comparison.estimate import estimate
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.options import Options

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


def test_an_estimate_counts_each_run_and_trunk() -> None:
    plan = plan_of(arms="sgd,mutation")
    guess = estimate(plan)
    assert guess.gradient_seconds > 0
    assert guess.forward_seconds > 0
    assert {label: forwards for label, (forwards, _) in guess.runs.items()} == plan.budgets
    of_seed = guess.trunk_hours + sum(hours for _, hours in guess.runs.values())
    assert guess.hours == pytest.approx(2 * of_seed)
    # at least each trunk's epochs and each arm's model, for both seeds
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 10))
    size = 4 * sum(p.numel() for p in model.parameters())
    assert guess.bytes >= 2 * (2 + 2) * size


def test_an_estimate_is_right_about_time_that_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a clock that runs a second at each look, the sums can be done by hand."""
    plan = plan_of(arms="sgd,openai-es", seeds=1)
    ticks = iter(range(100))
    monkeypatch.setattr(estimate_module.time, "perf_counter", lambda: float(next(ticks)))
    guess = estimate(plan)
    assert guess.gradient_seconds == pytest.approx(1 / 100)  # an epoch is less than three batches
    assert guess.forward_seconds == pytest.approx(1 / 40)
    # two epochs of the trunk, each with a look at the fitness examples
    assert guess.trunk_hours * 3600 == pytest.approx(2 * (100 / 100 + 40 / 40))
    own = 1 * 100 / 100 + 2 * 6 * 40 / 40  # one epoch, two generations of four, parent, step
    looking = (50 + 100 + 40) / 40
    forwards, hours = guess.runs["openai-es"]
    assert forwards == 900 + 2 * 240
    assert hours * 3600 == pytest.approx(own + looking)
    # sgd goes on for as many sample-forwards: 780 after the trunk instead of 300
    assert guess.runs["sgd"][1] * 3600 == pytest.approx(780 / 300 * 1 + looking)


def test_an_estimate_without_fitness_examples() -> None:
    guess = estimate(plan_of(arms="sgd", fitness_size=0, evolve_from=3))
    assert guess.hours > 0
