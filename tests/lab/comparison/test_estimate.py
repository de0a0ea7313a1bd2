"""What a comparison will take: hours, timed on a few batches, and disk."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from evostep.lab.comparison import estimate as estimate_module
from evostep.lab.comparison.estimate import estimate
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.options import Options
from evostep.optimizer import Evolved
from evostep.record import Record

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
    monkeypatch.setattr(
        estimate_module, "_time_generations", lambda plan, arm, parts, forward: 2 * forward
    )
    plan = plan_of(arms="sgd,openai-es", seeds=1)
    ticks = iter(range(100))
    monkeypatch.setattr(estimate_module.time, "perf_counter", lambda: float(next(ticks)))
    guess = estimate(plan)
    assert guess.gradient_seconds == pytest.approx(1 / 100)  # an epoch is less than three batches
    assert guess.forward_seconds == pytest.approx(1 / 40)
    # two epochs of the trunk, each with a look at the fitness examples
    assert guess.trunk_hours * 3600 == pytest.approx(2 * (100 / 100 + 40 / 40))
    own = 1 * 100 / 100 + 2 * 2 * 6 * 40 / 40  # an epoch, two generations of four, parent, step
    looking = (50 + 100 + 40) / 40
    forwards, hours = guess.runs["openai-es"]
    assert forwards == 900 + 2 * 240
    assert hours * 3600 == pytest.approx(own + looking)
    # sgd goes on for as many sample-forwards: 780 after the trunk instead of 300
    assert guess.runs["sgd"][1] * 3600 == pytest.approx(780 / 300 * 1 + looking)


def test_an_estimate_without_fitness_examples() -> None:
    guess = estimate(plan_of(arms="sgd", fitness_size=0, evolve_from=3))
    assert guess.hours > 0


def test_generations_are_timed_with_the_engine_that_a_run_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is slower than in place here, and slower by another engine: the clock tells which."""
    seen: list[tuple[str, int]] = []
    evolve = Evolved.evolve

    def watched(self: Evolved, fitness: Any, generations: int, **settings: Any) -> list[Record]:
        records = evolve(self, fitness, generations, **settings)
        seen.append((str(self.evolution.engine), generations))
        return [
            dataclasses.replace(record, seconds=[100.0, 5.0, 4.0][i], sample_forwards=200)
            for i, record in enumerate(records)
        ]

    monkeypatch.setattr(Evolved, "evolve", watched)
    for engine in ("inplace", "vmap"):
        guess = estimate(plan_of(arms="sgd,openai-es,guided-es,soup-cycle", engine=engine))
        for label in ("openai-es", "guided-es", "soup-cycle"):
            assert guess.scored_seconds[label] == 4.0 / 200  # without the first, which checks
        assert guess.scored_seconds["sgd"] == guess.forward_seconds
    assert len(seen) == 6
    assert seen[0] != seen[3]


def test_what_would_take_long_to_time_is_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "_PROBE_SECONDS", 0.0)
    guess = estimate(plan_of(arms="openai-es"))
    assert guess.scored_seconds["openai-es"] == guess.forward_seconds
    guess = estimate(plan_of(arms="esgd"))
    assert guess.scored_seconds["esgd"] == guess.forward_seconds


def test_timing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    estimate(plan_of(arms="mutation,soup-cmaes"))
    assert list(tmp_path.iterdir()) == []
