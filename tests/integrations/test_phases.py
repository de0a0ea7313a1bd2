from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from evostep import Alternate, Evolved, Fitness
from evostep.integrations.phases import Phases


@pytest.fixture
def setting(make_network: Any, strategy: Any, digits: Any) -> Any:
    model = make_network()
    optimizer = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), strategy)
    return model, optimizer, Fitness(model, [digits.other.tensors], "neg-loss")


def test_epochs_are_counted_by_an_alternation(setting: Any, watch: Any) -> None:
    model, optimizer, fitness = setting
    phases = Phases(fitness, Alternate(gradient=2, evolution=3, start=1), trackers=[watch])
    phases.begin([optimizer])
    assert [len(phases.after_epoch(model, epoch, epoch)) for epoch in range(5)] == [0, 0, 3, 0, 3]
    phases.end()
    assert watch.calls == ["begin", "phase 2", "phase 4", "close"]


def test_a_step_that_was_seen_before_is_no_new_one(setting: Any) -> None:
    """Nor is that at which a run goes on."""
    model, optimizer, fitness = setting
    phases = Phases(fitness, 1, every_steps=2)
    phases.begin([optimizer], step=4)
    steps = (4, 5, 5, 6, 6, 7, 8)
    assert [len(phases.after_step(model, step)) for step in steps] == [0, 0, 0, 1, 0, 0, 1]
    assert phases.after_epoch(model, 0, 8) == []


def test_a_function_of_the_model_is_called_once_for_each_model(
    setting: Any, make_network: Any, digits: Any
) -> None:
    model, optimizer, _ = setting
    made = []

    def fitness(of: Any) -> Fitness:
        made.append(of)
        return Fitness(of, [digits.other.tensors], "neg-loss")

    phases = Phases(fitness)
    phases.begin([optimizer])
    for epoch in range(2):
        phases.after_epoch(torch.compile(model, backend="eager"), epoch, epoch)
    assert made == [model]
    other = make_network()
    phases.begin(
        [Evolved(torch.optim.SGD(other.parameters(), lr=0.1), optimizer.evolution.strategy)]
    )
    phases.after_epoch(other, 0, 0)
    assert made == [model, other]


@pytest.mark.parametrize(
    ("fitness", "said"),
    [
        (lambda: 0.5, "must be an evostep.Fitness or a function of the model that returns one"),
        (0.5, "must be an evostep.Fitness or a function of the model"),
        (lambda model: 0.5, r"fitness returned 0.5 for the model: return an evostep.Fitness"),
    ],
)
def test_what_is_no_fitness_is_told(setting: Any, fitness: Any, said: str) -> None:
    model, optimizer, _ = setting
    phases = Phases(fitness)
    phases.begin([optimizer])
    with pytest.raises(ValueError, match=said):
        phases.after_epoch(model, 0, 0)


def test_limits_and_who_accepts_are_handed_on(setting: Any, digits: Any) -> None:
    model, optimizer, fitness = setting
    asked = []
    phases = Phases(
        fitness,
        50,
        accept_on=lambda of: asked.append(of) or Fitness(of, [digits.valid.tensors], "neg-loss"),
        max_forwards=3000,
    )
    phases.begin([optimizer])
    records = phases.after_epoch(model, 0, 0)
    assert asked == [model]
    assert len(records) < 5


@pytest.mark.parametrize("how_many", [0, 2])
def test_one_evolved_optimizer_it_must_be(setting: Any, how_many: int) -> None:
    _, optimizer, fitness = setting
    with pytest.raises(
        ValueError, match=f"{how_many} of {how_many} optimizers are evostep.Evolved"
    ):
        Phases(fitness).begin([optimizer] * how_many)


def test_other_optimizers_may_stand_beside(setting: Any) -> None:
    model, optimizer, fitness = setting
    phases = Phases(fitness)
    phases.begin([optimizer.base, optimizer])
    assert len(phases.after_epoch(model, 0, 0)) == 1


def test_every_steps_below_one_is_refused(setting: Any) -> None:
    with pytest.raises(ValueError, match="every_steps must be at least 1, got 0"):
        Phases(setting[2], every_steps=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": 1}, r"takes no start=: write generations=evostep.Alternate\(start=40\)$"),
        ({"evolution": 1}, r"no evolution=: write .*Alternate\(evolution=generations\)$"),
        ({"every_epochs": 1}, "takes no every_epochs=: it takes fitness, generations, every_steps"),
    ],
)
def test_an_argument_that_there_is_none_of_leads_to_the_right_one(
    setting: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        Phases(setting[2], **options)


@pytest.mark.parametrize("generations", ["3", None, 1.5])
def test_generations_are_a_number_or_an_alternation(setting: Any, generations: Any) -> None:
    _, optimizer, fitness = setting
    with pytest.raises(ValueError, match=f"whole number.*Alternate, got {generations!r}"):
        Phases(fitness, generations)
    with pytest.raises(ValueError, match=f"whole number, got {generations!r}"):
        optimizer.evolve(fitness, generations)


@pytest.mark.parametrize(
    ("schedule", "options", "cure"),
    [
        (1, {}, "after each epoch as .*: train longer$"),
        (Alternate(start=5), {}, "start=5.*: train longer, or take a smaller start=$"),
        (1, {"every_steps": 9}, "each 9 steps as .* longer, or take a smaller every_steps=$"),
    ],
)
def test_a_run_that_evolved_nothing_is_told_what_to_change(
    setting: Any, schedule: Any, options: dict[str, Any], cure: str
) -> None:
    _, optimizer, fitness = setting
    phases = Phases(fitness, schedule, **options)
    phases.begin([optimizer])
    with pytest.warns(UserWarning, match=cure):
        phases.end()


def test_a_pickle_leaves_the_run_behind(setting: Any) -> None:
    model, optimizer, fitness = setting
    phases = Phases(fitness)
    phases.begin([optimizer])
    phases.after_epoch(model, 0, 0)
    assert pickle.loads(pickle.dumps(phases))._optimizer is None
