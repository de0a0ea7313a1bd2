"""One run: what its budget, its lines of history and its checkpoints are, and how it goes on."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evostep.errors import InputError
from evostep.lab.arms import evaluation, recording
from evostep.lab.arms.budget import arm_cost
from evostep.lab.arms.evaluation import evaluate
from evostep.lab.arms.methods import METHODS
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.arms.seed_run import SeedRun, Watch, run_directory, trunk_directory
from evostep.lab.checkpoints import load_checkpoint, save_checkpoint
from evostep.lab.comparison import run as run_module
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.comparison.run import run_arm, run_trunk
from evostep.lab.data.parts import cut
from evostep.lab.options import Options
from evostep.lab.storage import History
from evostep.optimizer import Evolved

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "model": "mlp",
    "train_size": 100,
    "test_size": 50,
    "fitness_size": 40,
    "epochs": 4,
    "evolve_from": 2,
    "generations": 2,
    "population": 4,
    "sigma": 0.2,
    "lr": 0.1,
    "batch": 32,
    "seeds": 1,
    "threads": 1,
    "arms": "sgd,sgd-all,mutation,openai-es",
}


# The others spend what they need, whatever the budget: arms/procedures/test_standing
DESCENDING = [name for name, m in METHODS.items() if PROCEDURES[m.procedure].descends]

# As few examples as show what a method costs
FEW = {"train_size": 50, "fitness_size": 20, "test_size": 20}


def plan_of(**options: Any) -> Plan:
    return make_plan(Options(**{**TINY, **options}))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of()


def seed_run_of(plan: Plan, directory: Path, watch: Watch | None = None) -> SeedRun:
    directory.mkdir(parents=True, exist_ok=True)
    history = History(directory / "history.jsonl")
    seed = plan.seeds[0]
    parts = cut(plan.data, plan.splits[seed], CPU)
    return SeedRun(plan.options, seed, parts, plan.sizes, CPU, directory, history, watch or Watch())


def run(plan: Plan, directory: Path, label: str, watch: Watch | None = None) -> dict[str, Any]:
    """The trunk of one arm, and the arm, as a comparison runs them."""
    seed_run = seed_run_of(plan, directory, watch)
    arm = next(arm for arm in plan.arms if arm.label == label)
    trunk = run_trunk(seed_run, arm.training, plan.trunks[arm.training.key][1])
    return run_arm(seed_run, arm, trunk, plan.budgets[label])


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def timeless(value: Any) -> Any:
    """The same without what no two runs share."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def weights_of(plan: Plan, directory: Path, label: str) -> bytes:
    return (run_directory(directory, label, plan.seeds[0]) / "model.safetensors").read_bytes()


# The trunk


def test_a_trunk_keeps_what_arms_branch_from_and_nothing_else(plan: Plan, tmp_path: Path) -> None:
    seed_run, training = seed_run_of(plan, tmp_path), plan.arms[0].training
    checkpoint = run_trunk(seed_run, training, ["sgd", "mutation"])
    folder = trunk_directory(tmp_path, training, 0)
    assert sorted(p.name for p in folder.iterdir()) == ["last.before.pt", "last.pt"]
    state = load_checkpoint(checkpoint, CPU)
    assert state["counters"]["epoch"] == 2
    assert state["counters"]["forwards"] == 2 * 300
    assert [(r["kind"], r["epoch"], r["arms"]) for r in lines(tmp_path)] == [
        ("epoch", 0, ["sgd", "mutation"]),
        ("epoch", 1, ["sgd", "mutation"]),
    ]


def test_a_finished_trunk_is_not_trained_again(plan: Plan, tmp_path: Path) -> None:
    training = plan.arms[0].training
    checkpoint = run_trunk(seed_run_of(plan, tmp_path), training, ["sgd"])
    before = (checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns, lines(tmp_path))
    told: list[int] = []
    run_trunk(seed_run_of(plan, tmp_path, Watch(advance=told.append)), training, ["sgd"])
    assert (checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns, lines(tmp_path)) == before
    assert sum(told) == 600  # what is there already counts as progress


def test_a_trunk_of_no_epochs_is_the_model_as_it_was_made(tmp_path: Path) -> None:
    plan = plan_of(evolve_from=0)
    seed_run = seed_run_of(plan, tmp_path)
    checkpoint = run_trunk(seed_run, plan.arms[0].training, ["sgd"])
    state = load_checkpoint(checkpoint, CPU)
    fresh = seed_run.build().state_dict()
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in fresh.items())
    assert not (tmp_path / "history.jsonl").exists()
    result = run(plan, tmp_path, "mutation")
    assert result["epochs"] >= 4


def test_arms_leave_the_trunk_from_one_point(plan: Plan, tmp_path: Path) -> None:
    for label in ("sgd", "mutation", "openai-es"):
        run(plan, tmp_path, label)
    first = {
        arm: next(r for r in lines(tmp_path) if r["arm"] == arm)
        for arm in ("sgd", "mutation", "openai-es")
    }
    # the first epoch after the trunk is one and the same, since evolution comes after it
    assert first["sgd"]["epoch"] == 2
    for record in first.values():
        for key in ("epoch", "train", "fitness", "sample_forwards"):
            assert record[key] == first["sgd"][key]
    assert len([r for r in lines(tmp_path) if r["arm"].startswith("trunk:")]) == 2


# The budget


COSTS = {"sgd": 3 * 32, "sgd-all": 3 * 32, "mutation": 5 * 40, "openai-es": 6 * 40}


@pytest.mark.parametrize("label", list(COSTS))
@pytest.mark.parametrize("accept_size", [0, 20])
def test_an_arm_ends_at_the_first_step_or_generation_that_reaches_the_budget(
    label: str, accept_size: int, tmp_path: Path
) -> None:
    plan = plan_of(accept_size=accept_size)
    result = run(plan, tmp_path, label)
    budget = plan.budgets[label]
    assert budget is not None
    costliest = max(3 * 33, COSTS[label] + 2 * accept_size)
    assert budget <= result["sample_forwards"] < budget + costliest
    check_sums(result, lines(tmp_path), 100 + (40 + accept_size) * (label == "sgd-all"), 40)


def check_sums(
    result: dict[str, Any], records: list[dict[str, Any]], training: int, scored: int
) -> None:
    """Each line's sample-forwards are those of the line before and what it did itself."""
    spent = 0
    own = [r for r in records if r["arm"] in (result["arm"], records[0]["arm"])]
    for record, following in itertools.pairwise([*own, None]):
        cost = record["sample_forwards"] - spent
        if record["kind"] == "epoch":
            assert cost == 3 * training or (0 < cost < 3 * training and following is None)
        else:
            least = (len(record["scores"]) + 1) * scored
            judged = record["candidate"] is not None
            assert cost >= least
            assert (cost == least) or judged
        spent = record["sample_forwards"]
    assert result["sample_forwards"] == spent
    assert result["generations"] == sum(r["kind"] == "generation" for r in own)
    assert result["accepted"] == sum(r.get("accepted", False) for r in own)


def test_the_costliest_arm_needs_no_more_epochs_than_were_asked_for(tmp_path: Path) -> None:
    # always accepted, so no score is saved because nothing was proposed
    plan = plan_of(accept="always", arms="sgd,mutation")
    result = run(plan, tmp_path, "mutation")
    assert result["epochs"] == 4
    assert result["sample_forwards"] == plan.budgets["mutation"] == 4 * 300 + 4 * 200
    assert run(plan, tmp_path, "sgd")["epochs"] == 7  # 1200, and 800 more


def test_a_phase_ends_with_the_generation_that_reaches_the_budget(tmp_path: Path) -> None:
    cheap = {"method": "mutation", "generations": 8}
    dear = {"method": "openai-es", "generations": 9}
    plan = plan_of(arms=[cheap, dear])
    assert plan.budgets["mutation"] == 1200 + 2 * 9 * 240
    result = run(plan, tmp_path, "mutation")
    # two phases of 8, and after a fifth epoch 5 of 8: 1500 + 21 * 200
    assert (result["epochs"], result["generations"]) == (5, 21)
    assert result["sample_forwards"] == 5700


def test_seeds_have_noise_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    evolve = Evolved.evolve

    def spy(self: Evolved, *args: Any, **kwargs: Any) -> Any:
        seeds.append(self.evolution.seed)
        return evolve(self, *args, **kwargs)

    monkeypatch.setattr(Evolved, "evolve", spy)
    for seed in ("3,", "7,"):
        run(plan_of(seeds=seed), tmp_path / seed, "mutation")
    assert sorted(set(seeds)) == [3, 7]


@pytest.mark.parametrize("label", list(COSTS))
def test_without_a_budget_an_arm_ends_with_its_last_epoch(label: str, tmp_path: Path) -> None:
    result = run(plan_of(equal_budget=False), tmp_path, label)
    assert result["epochs"] == 4
    assert result["generations"] == (4 if label in ("mutation", "openai-es") else 0)
    epochs = [r["epoch"] for r in lines(tmp_path) if r["kind"] == "epoch"]
    assert epochs == [0, 1, 2, 3]


# The result


@pytest.mark.parametrize("label", ["sgd-all", "openai-es"])
def test_what_was_tested_is_what_was_saved(label: str, tmp_path: Path) -> None:
    plan = plan_of(model="small-cnn", accept_size=20)
    result = run(plan, tmp_path, label)
    seed_run = seed_run_of(plan, tmp_path)
    model = seed_run.build()
    model.load_state_dict(
        load_file(run_directory(tmp_path, label, 0) / "model.safetensors"), strict=True
    )
    arm = next(arm for arm in plan.arms if arm.label == label)
    parts = seed_run.parts
    for name, part in (
        ("test", parts.test),
        ("train", parts.gradients(arm.training.all_data)),
        ("fitness", parts.fitness),
        ("accept", parts.accept),
    ):
        assert result[name] == evaluate(model, part, parts.data, plan.options), name
    assert json.loads(json.dumps(result)) == result


def test_the_test_examples_are_read_once_at_the_end(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_run = seed_run_of(plan, tmp_path)
    seen: list[tuple[str, int]] = []

    def spy(model: Any, part: Any, data: Any, options: Any) -> Any:
        names = {id(getattr(seed_run.parts, n)): n for n in ("train", "fitness", "accept", "test")}
        written = tmp_path / "history.jsonl"
        seen.append((names.get(id(part), "?"), len(lines(tmp_path)) if written.exists() else 0))
        return evaluate(model, part, data, options)

    monkeypatch.setattr(evaluation, "evaluate", spy)
    monkeypatch.setattr(recording, "evaluate", spy)
    arm = plan.arms[2]
    trunk = run_trunk(seed_run, arm.training, [])
    run_arm(seed_run, arm, trunk, plan.budgets[arm.label])
    assert [when for name, when in seen if name == "test"] == [len(lines(tmp_path))]


def test_generations_are_written_as_they_happen(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    evolve = Evolved.evolve

    def spy(self: Any, *args: Any, on_generation: Callable[[Any], None], **kwargs: Any) -> Any:
        def noted(record: Any) -> None:
            on_generation(record)
            counts.append(len(lines(tmp_path)))

        return evolve(self, *args, on_generation=noted, **kwargs)

    monkeypatch.setattr(Evolved, "evolve", spy)
    run(plan, tmp_path, "mutation")
    assert counts[:4] == [4, 5, 7, 8]  # trunk 2, epoch, 2 generations, epoch, 2 generations


def test_accept_examples_decide_survival(tmp_path: Path) -> None:
    plan = plan_of(accept_size=20)
    run(plan, tmp_path, "openai-es")
    generations = [r for r in lines(tmp_path) if r["kind"] == "generation"]
    candidates = [r["candidate"] for r in generations if r["candidate"] is not None]
    assert candidates
    # multiples of 1/20 on the accept examples, of 1/40 on the fitness examples
    assert all(value * 20 == pytest.approx(round(value * 20)) for value in candidates)
    odd = [s for r in generations for s in r["scores"] if round(s * 40) % 2]
    assert odd


# Going on


POINTS = ("append", "half a line", "save_checkpoint", "after save_checkpoint", "save_weights")


class Stop(BaseException):
    """Ctrl-C, told apart from the one of whoever runs the tests."""


def stop_at(patch: pytest.MonkeyPatch, point: str, call: int) -> None:
    """Interrupt the run at its `call`-th (from 0) passage of a point."""
    count = itertools.count()
    append, save = History.append, run_module.save_checkpoint
    weights = run_module.save_weights

    def stopping_append(self: History, record: Any) -> None:
        if next(count) == call:
            if point == "half a line":
                with self.path.open("a") as file:
                    file.write(json.dumps(record)[:20])
            raise Stop
        append(self, record)

    def stopping_save(path: Path, state: Any) -> None:
        now = next(count) == call
        if now and point == "save_checkpoint":
            raise Stop
        save(path, state)
        if now:
            raise Stop

    def stopping_weights(path: Path, model: Any) -> None:
        if next(count) == call:
            raise Stop
        weights(path, model)

    if point in ("append", "half a line"):
        patch.setattr(History, "append", stopping_append)
    elif point == "save_weights":
        patch.setattr(run_module, "save_weights", stopping_weights)
    else:
        patch.setattr(run_module, "save_checkpoint", stopping_save)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Plan, dict[str, Any], Path]]:
    done: dict[tuple[str, str], tuple[Plan, dict[str, Any], Path]] = {}

    def of(label: str, model: str) -> tuple[Plan, dict[str, Any], Path]:
        if (label, model) not in done:
            plan = plan_of(model=model, augment="shift", evolve_from=1, epochs=3)
            directory = tmp_path_factory.mktemp("whole")
            done[label, model] = plan, run(plan, directory, label), directory
        return done[label, model]

    return of


@pytest.mark.parametrize(
    ("label", "model", "point"),
    [
        *(("mutation", "mlp", point) for point in POINTS),
        ("sgd", "mlp", "after save_checkpoint"),
        pytest.param("openai-es", "small-cnn", "half a line", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(
    label: str,
    model: str,
    point: str,
    uninterrupted: Callable[..., tuple[Plan, dict[str, Any], Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, expected, whole = uninterrupted(label, model)
    stopped = 0
    for call in itertools.count():
        directory = tmp_path / str(call)
        with monkeypatch.context() as patch:
            stop_at(patch, point, call)
            try:
                run(plan, directory, label)
            except Stop:
                stopped += 1
            else:
                break  # no more passages to stop at
        assert timeless(run(plan, directory, label)) == timeless(expected), call
        assert timeless(lines(directory)) == timeless(lines(whole)), call
        assert weights_of(plan, directory, label) == weights_of(plan, whole, label), call
    assert stopped >= (1 if point == "save_weights" else 2)  # weights are saved once, at the end


def test_a_run_stopped_again_and_again_gets_to_the_same_bits(
    uninterrupted: Callable[..., tuple[Plan, dict[str, Any], Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, expected, whole = uninterrupted("openai-es", "small-cnn")
    for _ in range(20):
        with monkeypatch.context() as patch:
            stop_at(patch, "append", 4)  # one epoch with its generations, and a bit
            try:
                result = run(plan, tmp_path, "openai-es")
                break
            except Stop:
                continue
    assert timeless(result) == timeless(expected)
    assert timeless(lines(tmp_path)) == timeless(lines(whole))
    assert weights_of(plan, tmp_path, "openai-es") == weights_of(plan, whole, "openai-es")


@pytest.mark.parametrize("label", DESCENDING)
def test_every_method_ends_at_its_budget_and_can_be_stopped_on_the_way(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(model="small-cnn", arms=[label], sigma=None, accept_size=10, **FEW)
    expected = run(plan, tmp_path / "whole", label)
    budget = plan.budgets[label]
    assert budget is not None
    # one epoch of an individual of a population, or one generation with its verdict, or a phase's
    assert budget <= expected["sample_forwards"] < budget + 2 * 240
    with monkeypatch.context() as patch:
        stop_at(patch, "after save_checkpoint", 2)  # two of the trunk, one of the arm
        with pytest.raises(Stop):
            run(plan, tmp_path / "stopped", label)
    again = run(plan, tmp_path / "stopped", label)
    assert timeless(again) == timeless(expected)
    assert timeless(lines(tmp_path / "stopped")) == timeless(lines(tmp_path / "whole"))
    assert weights_of(plan, tmp_path / "stopped", label) == weights_of(
        plan, tmp_path / "whole", label
    )


@pytest.mark.parametrize(
    ("label", "accept_size"), [(label, 10 * (i % 2)) for i, label in enumerate(DESCENDING)]
)
def test_no_method_costs_more_than_its_procedure_says(
    label: str, accept_size: int, tmp_path: Path
) -> None:
    small: dict[str, Any] = {**FEW, "model": "small-cnn", "accept_size": accept_size}
    plan = plan_of(**small, arms=[label], sigma=None, equal_budget=False)
    (arm,) = plan.arms
    result = run(plan, tmp_path, label)
    cost = arm_cost(arm, plan.sizes)
    if METHODS[label].evolves:
        # what is saved: candidates that were never scored, statistics of none, short searches
        assert cost / 2 < result["sample_forwards"] <= cost
    else:
        assert result["sample_forwards"] == cost


# What is corrupt


def test_a_truncated_checkpoint_is_named_and_what_to_do(plan: Plan, tmp_path: Path) -> None:
    training = plan.arms[0].training
    checkpoint = run_trunk(seed_run_of(plan, tmp_path), training, ["sgd"])
    before = checkpoint.with_name("last.before.pt")
    for path in (checkpoint, before):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"corrupt.*delete it") as caught:
        run(plan, tmp_path, "sgd")
    assert str(checkpoint) in str(caught.value)
    checkpoint.unlink()  # as it says
    before.unlink()
    again = run(plan, tmp_path, "sgd")
    assert timeless(again) == timeless(run(plan, tmp_path / "fresh", "sgd"))
    assert timeless(lines(tmp_path)) == timeless(lines(tmp_path / "fresh"))


@pytest.mark.parametrize("changed", ["cut off", "a bit"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    changed: str, plan: Plan, tmp_path: Path
) -> None:
    training = plan.arms[0].training
    checkpoint = run_trunk(seed_run_of(plan, tmp_path), training, plan.trunks[training.key][1])
    whole = bytearray(checkpoint.read_bytes())
    weights = load_checkpoint(checkpoint, CPU)["model"]["head.weight"].numpy().tobytes()
    if changed == "cut off":
        del whole[len(whole) // 2 :]
    else:
        whole[whole.index(weights) + 100] ^= 1
    checkpoint.write_bytes(bytes(whole))
    with pytest.warns(UserWarning, match=r"last.pt is corrupt .*: the one before is taken"):
        again = run(plan, tmp_path, "sgd")
    assert timeless(again) == timeless(run(plan, tmp_path / "fresh", "sgd"))
    assert timeless(lines(tmp_path)) == timeless(lines(tmp_path / "fresh"))
    assert weights_of(plan, tmp_path, "sgd") == weights_of(plan, tmp_path / "fresh", "sgd")


def test_lines_are_on_the_disk_before_a_checkpoint_counts_them(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync, save = History.sync, run_module.save_checkpoint

    def noted(self: History) -> None:
        sync(self)
        synced.append(len(lines(tmp_path)))

    def saving(path: Path, state: Any) -> None:
        assert synced[-1] == state["counters"]["lines"] == len(lines(tmp_path))
        save(path, state)

    monkeypatch.setattr(History, "sync", noted)
    monkeypatch.setattr(run_module, "save_checkpoint", saving)
    run_trunk(seed_run_of(plan, tmp_path), plan.arms[0].training, ["sgd"])
    assert synced == [1, 2]


def test_a_run_that_goes_on_elsewhere_says_so(plan: Plan, tmp_path: Path) -> None:
    checkpoint = run_trunk(seed_run_of(plan, tmp_path), plan.arms[0].training, ["sgd"])
    state = load_checkpoint(checkpoint, CPU)
    state["made_on"] |= {"threads": 7, "torch": "2.0.1"}
    save_checkpoint(checkpoint, state)
    told = (
        r"stopped elsewhere \(torch 2.0.1 -> .*; threads 7 -> 1\): it goes on, but not to the bits"
    )
    with pytest.warns(UserWarning, match=told):
        run(plan, tmp_path, "sgd")
    del state["made_on"]  # as older versions saved it
    save_checkpoint(checkpoint, state)
    run(plan, tmp_path, "sgd-all")


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"model": {}, "optimizer": {}, "counters": {}},
        {"model": {"x": torch.zeros(1)}, "optimizer": {}, "counters": {}},
    ],
)
def test_a_checkpoint_of_another_run_is_named(
    plan: Plan, tmp_path: Path, state: dict[str, Any]
) -> None:
    checkpoint = trunk_directory(tmp_path, plan.arms[0].training, 0) / "last.pt"
    save_checkpoint(checkpoint, state)
    with pytest.raises(InputError, match=r"does not fit this run.*delete it") as caught:
        run(plan, tmp_path, "sgd")
    assert "\n" not in str(caught.value)


# A fitness that fails


FRAGILE = """
def large(outputs):
    return float(outputs.abs().max()) > 1000

def some(outputs, targets):
    if large(outputs) and int(outputs.sum()) % 2:
        raise ValueError("outputs too large\\nby far")
    return (outputs.argmax(1) == targets).double()

def all(outputs, targets):
    if large(outputs):
        raise ValueError("outputs too large")
    return (outputs.argmax(1) == targets).double()

def nan(outputs, targets):
    return float("nan") if large(outputs) else float((outputs.argmax(1) == targets).double().mean())
"""
# Mutations a hundred times the size of the weights: far above any output of a trained network
FAR = {"sigma": 100.0, "equal_budget": False}


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fragile_metric.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "fragile_metric", raising=False)


@pytest.mark.usefixtures("fragile")
@pytest.mark.filterwarnings("ignore:generation .* failed for all 8 members")  # by chance
@pytest.mark.parametrize("label", ["mutation", "openai-es"])
def test_members_that_fail_are_counted_and_shown(label: str, tmp_path: Path) -> None:
    plan = plan_of(metric="fragile_metric:some", population=8, generations=3, **FAR)
    told: list[str] = []
    result = run(plan, tmp_path, label, Watch(warn=told.append))
    generations = [r for r in lines(tmp_path) if r["kind"] == "generation"]
    assert len(generations) == 6
    failed = [sum(score is None for score in r["scores"]) for r in generations]
    assert 0 < sum(failed) < 48
    for record, missing in zip(generations, failed, strict=True):
        assert missing <= record["failed"] <= missing + 1  # the candidate may fail, too
    assert result["failed"] == sum(r["failed"] for r in generations)
    assert told
    assert all("ValueError: outputs too large" in text for text in told)
    assert told[0].startswith(f"{label} seed 0 epoch 3: ")


@pytest.mark.usefixtures("fragile")
@pytest.mark.parametrize(
    ("metric", "error"), [("all", "ValueError: outputs too large"), ("nan", "the fitness was nan")]
)
@pytest.mark.parametrize("label", ["mutation", "openai-es"])
def test_where_all_members_fail_the_run_goes_on_as_if_there_were_no_evolution(
    label: str, metric: str, error: str, tmp_path: Path
) -> None:
    plan = plan_of(metric=f"fragile_metric:{metric}", **FAR)
    with pytest.warns(UserWarning, match=f"failed for all 4 members.*{error}"):
        result = run(plan, tmp_path, label)
    run(plan, tmp_path, "sgd")
    assert weights_of(plan, tmp_path, label) == weights_of(plan, tmp_path, "sgd")
    assert (result["failed"], result["accepted"], result["generations"]) == (16, 0, 4)
    generations = [r for r in lines(tmp_path) if r["kind"] == "generation"]
    assert all(r["scores"] == [None] * 4 for r in generations)
