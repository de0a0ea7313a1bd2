"""What comes after what, and what is to be done."""

from pathlib import Path

import pytest

from evostep.lab.comparison.graph import Task, Waiting, make_graph, undone, way_to
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.options import Options


@pytest.fixture(scope="module")
def plan() -> Plan:
    started = {"start_from": "sgd-all"}
    return make_plan(
        Options(
            model="mlp",
            train_size=60,
            test_size=50,
            fitness_size=40,
            epochs=3,
            evolve_from=1,
            generations=2,
            population=4,
            seeds=2,
            threads=1,
            arms=[
                "sgd",
                "mutation",
                {"method": "snes-head", "label": "head", **started},
                {"method": "sgd-all"},
            ],
        )
    )


def test_it_is_what_one_process_does_in_its_order(plan: Plan) -> None:
    (start,) = plan.starts
    told = [str(task) for task in make_graph(plan)]
    of_seed = [
        "trunk:sgd-lr0.01-m0.9-b64",
        "sgd",
        "mutation",
        "trunk:sgd-lr0.01-m0.9-b64-all-data",
        f"start:{start}",
        "head",
        "sgd-all",
    ]
    assert told == [f"{name} seed {seed}" for seed in (0, 1) for name in of_seed]
    for task in make_graph(plan):
        kinds = [one.kind for one in way_to(task)]
        assert kinds[-1] == "trunk"
        assert task.checkpoint.parent == task.folder
        assert {one.seed for one in way_to(task)} == {task.seed}


def test_what_leads_to_no_missing_arm_is_not_done(plan: Plan) -> None:
    tasks = make_graph(plan)
    labels = [arm.label for arm in plan.arms]
    assert undone(tasks, []) == tasks
    assert undone(tasks, [(label, seed) for label in labels for seed in (0, 1)]) == []
    left = undone(tasks, [(label, seed) for label in labels for seed in (0, 1) if label != "head"])
    assert [task.kind for task in left] == ["trunk", "start", "arm"] * 2
    assert [task.run for task in left if task.kind == "arm"] == ["head", "head"]


def test_a_task_is_due_when_what_it_comes_after_is_done() -> None:
    trunk = Task("trunk", "t", 0, Path("t"))
    arm, other = (Task("arm", name, 0, Path(name), trunk) for name in "ab")
    second = Task("trunk", "t", 1, Path("u"))
    waiting = Waiting([trunk, arm, other, second])
    assert waiting.take() == trunk
    assert waiting.take() == second
    assert waiting.take() is None
    waiting.done(trunk)
    assert [waiting.take() for _ in range(3)] == [arm, other, None]


def test_what_comes_after_a_lost_task_is_never_due() -> None:
    trunk = Task("trunk", "t", 0, Path("t"))
    waiting = Waiting([trunk, Task("arm", "a", 0, Path("a"), trunk)])
    waiting.take()  # and never done
    assert waiting.take() is None
