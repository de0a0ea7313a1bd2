"""A comparison from end to end: equal data, equal compute, paired seeds, and nothing run twice."""

import dataclasses
import io
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from evostep.errors import InputError
from evostep.lab.arms.procedures import PROCEDURES
from evostep.lab.comparison import compare as compare_module
from evostep.lab.comparison import directory as directory_module
from evostep.lab.comparison.compare import compare, describe_plan, plan_facts
from evostep.lab.comparison.directory import check_directory, finished_runs
from evostep.lab.comparison.estimate import estimate
from evostep.lab.comparison.executors import base as base_module
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.options import Options
from evostep.lab.report.figures import FIGURES
from evostep.lab.report.page import ReportPaths
from evostep.lab.storage import History, read_json, write_json

ARMS = ("sgd", "sgd-all", "mutation", "openai-es")
TINY: dict[str, Any] = {
    "model": "mlp",
    "train_size": 100,
    "test_size": 50,
    "fitness_size": 40,
    "accept_size": 20,
    "epochs": 3,
    "evolve_from": 2,
    "generations": 2,
    "population": 4,
    "sigma": 0.2,
    "lr": 0.1,
    "seeds": 2,
    "threads": 1,
    "arms": ",".join(ARMS),
}


def plan_of(**options: Any) -> Plan:
    return make_plan(Options(**{**TINY, **options}))


def run(plan: Plan, directory: Path) -> str:
    """Compare, and give what was printed."""
    file = io.StringIO()
    compare(plan, directory, Console(file=file, width=60))
    return file.getvalue()


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and are tested by themselves."""

    def no_report(directory: Path) -> ReportPaths:
        return ReportPaths(directory / "table.md", directory / "report.html", ())

    monkeypatch.setattr(compare_module, "write_report", no_report)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole comparison, which tests read and never change."""
    directory = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name in FIGURES.keys() - {"gap"}:  # the quickest; figures have tests of their own
            patch.delitem(FIGURES, name)
        run(plan_of(), directory)
    return directory


@pytest.fixture(scope="module")
def results(finished: Path) -> dict[str, Any]:
    loaded = json.loads(
        (finished / "results.json").read_text(), parse_constant=lambda c: pytest.fail(c)
    )
    assert isinstance(loaded, dict)
    return loaded


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "environment")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def weights(directory: Path) -> dict[str, bytes]:
    return {
        path.parent.name: path.read_bytes()
        for path in sorted((directory / "runs").glob("*/model.safetensors"))
    }


def stamps(directory: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for folder in ("runs", "trunks")
        for path in sorted((directory / folder).rglob("*"))
        if path.is_file()
    }


# What is written


def test_results_have_the_documented_shape(results: dict[str, Any]) -> None:
    assert results.keys() >= {"config", "environment", "splits", "runs", "arms", "contrasts"}
    pairs = [(r["arm"], r["seed"]) for r in results["runs"]]
    assert pairs == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    for result in results["runs"]:
        assert result.keys() >= {"sample_forwards", "seconds", "generations", "accepted", "failed"}
        for part in ("test", "train", "fitness", "accept"):
            assert result[part].keys() == {"accuracy", "loss"}
            assert 0 <= result[part]["accuracy"] <= 1 < 10 * result[part]["loss"]
    rows = [(row["arm"], row["metric"], row["n"]) for row in results["arms"]]
    assert sorted(rows) == sorted((arm, m, 2) for arm in ARMS for m in ("accuracy", "loss"))
    for row in (*results["arms"], *results["contrasts"]):
        assert row.keys() >= {"arm", "n", "mean", "ci95"}
    assert all("sd" in row for row in results["arms"])
    contrasts = {(row["arm"], row["control"]) for row in results["contrasts"]}
    assert contrasts >= {("mutation", "sgd"), ("openai-es", "sgd"), ("openai-es", "sgd-all")}
    assert all(row.keys() >= {"metric", "p"} for row in results["contrasts"])


def test_means_and_contrasts_are_those_of_the_runs(results: dict[str, Any]) -> None:
    tested = {(r["arm"], r["seed"]): r["test"]["accuracy"] for r in results["runs"]}
    for row in results["arms"]:
        if row["metric"] == "accuracy":
            assert row["mean"] == pytest.approx((tested[row["arm"], 0] + tested[row["arm"], 1]) / 2)
    (row,) = (
        row
        for row in results["contrasts"]
        if (row["arm"], row["control"], row["metric"]) == ("openai-es", "sgd", "accuracy")
    )
    gains = [tested["openai-es", seed] - tested["sgd", seed] for seed in (0, 1)]
    assert row["mean"] == pytest.approx(sum(gains) / 2)


def test_the_configuration_and_the_machine_are_written_down(results: dict[str, Any]) -> None:
    config = results["config"]
    assert config["model"] == "mlp"
    assert config["data"] == "digits"
    assert config["seeds"] == [0, 1]
    assert config["epochs"] == 3
    assert [arm["label"] for arm in config["arms"]] == list(ARMS)
    assert [arm["control"] for arm in config["arms"]] == [True, True, False, False]
    assert config["arms"][3]["strategy"]["population"] == 4
    environment = results["environment"]
    assert environment.keys() >= {"command", "date", "evostep", "torch", "python", "cpu", "threads"}
    assert environment["torch"] == torch.__version__


def test_splits_are_disjoint_and_written_down(finished: Path, results: dict[str, Any]) -> None:
    splits = read_json(finished / "splits.json")
    assert splits["summary"] == results["splits"]
    for seed in ("0", "1"):
        parts = splits["indices"][seed]
        sizes = {"train": 100, "fitness": 40, "accept": 20, "test": 50}
        assert {name: len(part) for name, part in parts.items()} == sizes
        for one, other in itertools.combinations(parts.values(), 2):
            assert not set(one) & set(other)
    assert splits["indices"]["0"] != splits["indices"]["1"]


def test_a_trunk_is_trained_once_a_seed_and_sgd_all_has_its_own(finished: Path) -> None:
    records = lines(finished)
    for seed in (0, 1):
        of_trunks = [
            (r["arm"], r["epoch"], tuple(r["arms"]))
            for r in records
            if r["arm"].startswith("trunk:") and r["seed"] == seed
        ]
        shared, own = "trunk:sgd-lr0.1-m0.9-b64", "trunk:sgd-lr0.1-m0.9-b64-all-data"
        paired = ("sgd", "mutation", "openai-es")
        assert sorted(of_trunks) == [
            (shared, 0, paired),
            (shared, 1, paired),
            (own, 0, ("sgd-all",)),
            (own, 1, ("sgd-all",)),
        ]
        first = {
            arm: next(r for r in records if (r["arm"], r["seed"]) == (arm, seed)) for arm in ARMS
        }
        assert {r["epoch"] for r in first.values()} == {2}
        for arm in ("mutation", "openai-es"):
            assert first[arm]["train"] == first["sgd"]["train"]
        assert first["sgd-all"]["train"] != first["sgd"]["train"]


def test_history_has_no_line_twice(finished: Path) -> None:
    keys = [
        (r["arm"], r["seed"], r["kind"], r["epoch"], r.get("generation")) for r in lines(finished)
    ]
    assert len(set(keys)) == len(keys)


def test_every_arm_ends_at_the_common_budget(finished: Path, results: dict[str, Any]) -> None:
    # openai-es: three epochs of 100, two generations of 4 members and the parent, each judged
    # with its parent on 20; sgd-all: three epochs of 160
    budget = max(900 + 2 * (5 * 40 + 2 * 20), 3 * 3 * 160)
    assert results["config"]["budget"] == budget
    costliest = {"sgd": 3 * 64, "sgd-all": 3 * 64, "mutation": 240, "openai-es": 240}
    records = lines(finished)
    for result in results["runs"]:
        arm, seed = result["arm"], result["seed"]
        assert budget <= result["sample_forwards"] < budget + costliest[arm], arm
        last = [r for r in records if (r["arm"], r["seed"]) == (arm, seed)][-1]
        assert last["sample_forwards"] == result["sample_forwards"]


def test_table_and_page_name_every_arm(finished: Path) -> None:
    table, page = (finished / name for name in ("table.md", "report.html"))
    for arm in ARMS:
        assert arm in table.read_text()
        assert arm in page.read_text()
    assert "<svg" in page.read_text()


def test_no_temporary_file_or_checkpoint_of_an_arm_stays(finished: Path) -> None:
    assert not list(finished.rglob("*.part"))
    names = sorted({p.name for p in (finished / "runs").rglob("*") if p.is_file()})
    assert names == ["model.safetensors", "result.json"]


@pytest.mark.usefixtures("without_report")
def test_one_seed_has_no_spread_and_no_test(tmp_path: Path) -> None:
    run(plan_of(seeds="7,", equal_budget=False, arms="sgd,mutation"), tmp_path)
    results = read_json(tmp_path / "results.json")
    assert [r["seed"] for r in results["runs"]] == [7, 7]
    assert [r["epochs"] for r in results["runs"]] == [3, 3]
    assert [r["generations"] for r in results["runs"]] == [0, 2]
    assert results["config"]["budget"] is None
    for row in results["arms"]:
        assert (row["n"], row["sd"], row["ci95"]) == (1, None, None)
    assert results["contrasts"]
    for row in results["contrasts"]:
        assert (row["n"], row["ci95"], row["p"]) == (1, None, None)


@pytest.mark.usefixtures("without_report")
def test_what_diverges_is_still_json(tmp_path: Path) -> None:
    """A learning rate far too high: loss NaN, told by the statistics, not by a crash."""
    run(plan_of(seeds=1, lr=1e30, arms="sgd,mutation"), tmp_path)
    for text in (
        (tmp_path / "results.json").read_text(),
        *(tmp_path / "history.jsonl").read_text().splitlines(),
    ):
        json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    results = read_json(tmp_path / "results.json")
    assert results["runs"][0]["test"]["loss"] is None
    assert any(row["mean"] is None for row in results["arms"] if row["metric"] == "loss")


# Going on


@pytest.mark.usefixtures("without_report")
def test_the_same_command_again_repeats_nothing(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "a directory with a [long] name, so that a narrow console would wrap it"
    shutil.copytree(finished, directory)
    before, history = stamps(directory), lines(directory)
    results = read_json(directory / "results.json")
    printed = run(plan_of(), directory)
    kept, classes = printed.splitlines()
    assert classes.startswith("10 classes: ")
    assert kept == f"8 finished runs found in {directory}: they are kept"
    assert stamps(directory) == before
    assert lines(directory) == history
    assert timeless(read_json(directory / "results.json")) == timeless(results)


class Stop(BaseException):
    """Ctrl-C, told apart from the one of whoever runs the tests."""


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    "stops",
    [
        [3],
        [14],
        [5, 5, 12],
        *(pytest.param([at], marks=pytest.mark.slow) for at in (9, 17, 22)),
    ],
)
def test_a_comparison_that_was_stopped_goes_on_to_the_same_bits(
    stops: list[int], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = History.append
    for at in stops:
        count = itertools.count()

        def stopping(self: History, record: Any, count: Any = count, at: int = at) -> None:
            if next(count) == at:
                raise Stop
            append(self, record)

        done = stamps(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(History, "append", stopping)
            with pytest.raises(Stop):
                run(plan_of(), tmp_path)
        untouched = {p: s for p, s in done.items() if p.endswith(("result.json", ".safetensors"))}
        assert untouched.items() <= stamps(tmp_path).items()
    run(plan_of(), tmp_path)
    assert timeless(lines(tmp_path)) == timeless(lines(finished))
    assert weights(tmp_path) == weights(finished)
    expected = read_json(finished / "results.json")
    assert timeless(read_json(tmp_path / "results.json")) == timeless(expected)


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    "written", [0, 1, 4, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 5, 6))]
)
def test_stopped_between_runs_it_goes_on(
    written: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the weights are saved, around the writing of a result and of the results."""
    count = itertools.count()

    def stopping(path: Path, value: Any) -> None:
        if path.name in ("result.json", "results.json") and next(count) == written:
            raise Stop
        write_json(path, value)

    plan = plan_of(seeds=1)
    with monkeypatch.context() as patch:
        for module in (base_module, directory_module):
            patch.setattr(module, "write_json", stopping)
        with pytest.raises(Stop):
            run(plan, tmp_path)
    run(plan, tmp_path)
    first = {name: w for name, w in weights(finished).items() if name.endswith("seed0")}
    assert weights(tmp_path) == first
    expected = [r for r in lines(finished) if r["seed"] == 0]
    assert timeless(lines(tmp_path)) == timeless(expected)


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("stopped", ["plan.json", "splits.json"])
def test_stopped_before_the_first_run_the_directory_is_still_ones_own(
    stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(path: Path, value: Any) -> None:
        if path.name == stopped:
            raise Stop
        write_json(path, value)

    plan = plan_of(seeds=1, arms="sgd")
    with monkeypatch.context() as patch:
        patch.setattr(directory_module, "write_json", stopping)
        with pytest.raises(Stop):
            run(plan, tmp_path / "out")
    run(plan, tmp_path / "out")
    assert len(read_json(tmp_path / "out" / "results.json")["runs"]) == 1


@pytest.mark.usefixtures("without_report")
def test_killed_when_its_result_was_there_it_leaves_no_checkpoint(copied: Path) -> None:
    before = stamps(copied)
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        (copied / "runs" / "sgd-seed1" / name).write_bytes(b"of the killed run")
    run(plan_of(), copied)
    assert stamps(copied) == before


@pytest.mark.usefixtures("without_report")
def test_more_seeds_run_those_alone(finished: Path, tmp_path: Path) -> None:
    run(plan_of(seeds="1,"), tmp_path)
    before, history = stamps(tmp_path), lines(tmp_path)
    run(plan_of(seeds=2), tmp_path)
    assert before.items() <= stamps(tmp_path).items()
    assert lines(tmp_path)[: len(history)] == history
    assert weights(tmp_path) == weights(finished)
    results = read_json(tmp_path / "results.json")
    assert timeless(results["runs"]) == timeless(read_json(finished / "results.json")["runs"])
    assert results["config"]["seeds"] == [0, 1]
    assert results["splits"].keys() == {"0", "1"}
    # and fewer seeds lose none
    run(plan_of(seeds=1), tmp_path)
    assert len(read_json(tmp_path / "results.json")["runs"]) == 8


@pytest.mark.usefixtures("without_report")
def test_more_arms_run_those_alone_where_the_budget_stays(finished: Path, tmp_path: Path) -> None:
    run(plan_of(arms="sgd,sgd-all,openai-es"), tmp_path)
    before = stamps(tmp_path)
    run(plan_of(), tmp_path)
    assert before.items() <= stamps(tmp_path).items()
    assert weights(tmp_path) == weights(finished)
    results = read_json(tmp_path / "results.json")
    assert {r["arm"] for r in results["runs"]} == set(ARMS)
    # the trunk that arms share was there
    of_trunk = [r for r in lines(tmp_path) if r["arm"].startswith("trunk:")]
    assert len(of_trunk) == 2 * 2 * 2


@pytest.mark.usefixtures("without_report")
def test_an_arm_that_needs_a_larger_budget_is_refused(finished: Path) -> None:
    before = stamps(finished)
    dear = {"method": "mutation", "label": "dear", "population": 40}
    # 900 + 2 * (41 * 40 + 2 * 20)
    with pytest.raises(InputError, match=r"common budget was 1440 .* these arms is 4260"):
        run(plan_of(arms=[*ARMS, dear]), finished)
    with pytest.raises(InputError, match=r"common budget was 1440 .* these arms is 900"):
        run(plan_of(arms="sgd"), finished)
    assert stamps(finished) == before


@pytest.mark.usefixtures("without_report")
def test_without_a_common_budget_any_arm_may_join(tmp_path: Path) -> None:
    cheap = {"seeds": 1, "equal_budget": False}
    run(plan_of(arms="sgd", **cheap), tmp_path)
    dear = {"method": "mutation", "label": "dear", "population": 8}
    run(plan_of(arms=[dear], **cheap), tmp_path)
    results = read_json(tmp_path / "results.json")
    assert [r["arm"] for r in results["runs"]] == ["sgd", "dear"]


def test_a_plan_whose_mutation_has_children_is_the_same_configuration(
    finished: Path, tmp_path: Path
) -> None:
    """As older versions wrote it; another number is refused all the same."""
    shutil.copytree(finished, tmp_path / "out")
    path = tmp_path / "out" / "plan.json"
    plan = read_json(path)
    strategy = plan["arms"]["mutation"]["strategy"]
    strategy["children"] = strategy.pop("population")
    write_json(path, plan)
    check_directory(plan_of(), tmp_path / "out")
    strategy["children"] += 1
    write_json(path, plan)
    with pytest.raises(InputError, match=r"arm mutation: strategy\.population was 5, now 4"):
        check_directory(plan_of(), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lr": 0.2}, "--lr was 0.1, now 0.2"),
        ({"epochs": 4}, "--epochs was 3, now 4"),
        ({"model": "small-cnn"}, "--model was mlp, now small-cnn"),
        ({"train_size": 90}, "--train-size was 100, now 90"),
        ({"metric": "macro-f1"}, "--metric was accuracy, now macro-f1"),
        ({"equal_budget": False}, "--equal-budget was True, now False"),
        ({"population": 6}, "--population was 4, now 6"),
        (
            {"arms": ["sgd", "sgd-all", {"method": "mutation", "generations": 1}, "openai-es"]},
            "arm mutation: schedule.evolution was 2, now 1",
        ),
        (
            {"strategies": {"openai-es": {"shaping": "z-score"}}},
            "arm openai-es: strategy.shaping was centered-rank, now z-score",
        ),
    ],
)
def test_another_configuration_is_refused_by_name(
    options: dict[str, Any], told: str, finished: Path
) -> None:
    before = stamps(finished)
    with pytest.raises(InputError) as caught:
        run(plan_of(**options), finished)
    assert told in str(caught.value)
    assert str(finished) in str(caught.value)
    assert "choose another --out" in str(caught.value)
    assert stamps(finished) == before


def test_other_data_under_the_same_name_is_refused(finished: Path) -> None:
    plan = plan_of()
    other = dataclasses.replace(plan, splits={0: plan.splits[1]})
    with pytest.raises(InputError, match="the data or its splits of seed 0 were others"):
        check_directory(other, finished)


# What is corrupt


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


Damage = Callable[[bytes], bytes]


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"[]\n",
        lambda content: b"{}\n",
        lambda content: b'{"arms": {"sgd": 1}, "options": {}}\n',
    ],
    ids=["half", "empty", "list", "no keys", "other keys"],
)
@pytest.mark.parametrize("name", ["splits.json", "runs/sgd-seed1/result.json"])
def test_a_corrupt_file_is_named_and_nothing_else_is_touched(
    name: str, damage: Damage, copied: Path
) -> None:
    path = copied / name
    path.write_bytes(damage(path.read_bytes()))
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    with pytest.raises(InputError) as caught:
        run(plan_of(), copied)
    assert str(copied) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


@pytest.mark.usefixtures("without_report")
def test_a_result_in_the_place_of_another_is_refused(copied: Path) -> None:
    runs = copied / "runs"
    (runs / "sgd-seed0" / "result.json").write_bytes(
        (runs / "mutation-seed1" / "result.json").read_bytes()
    )
    with pytest.raises(InputError, match=r"sgd-seed0.* is not the result of this run: delete it"):
        finished_runs(copied)


@pytest.mark.usefixtures("without_report")
def test_a_lost_result_is_found_again_from_the_trunk(finished: Path, copied: Path) -> None:
    (copied / "runs" / "openai-es-seed1" / "result.json").unlink()
    trunks = {p: s for p, s in stamps(copied).items() if "/trunks/" in p}
    run(plan_of(), copied)
    assert weights(copied) == weights(finished)
    assert {p: s for p, s in stamps(copied).items() if "/trunks/" in p} == trunks
    by_run = lambda r: (r["arm"], r["seed"])  # noqa: E731
    assert sorted(timeless(lines(copied)), key=by_run) == sorted(
        timeless(lines(finished)), key=by_run
    )


@pytest.mark.usefixtures("without_report")
def test_a_truncated_checkpoint_of_a_finished_trunk(finished: Path, copied: Path) -> None:
    """It matters only where an arm is missing; then it is named, and can be deleted."""
    (checkpoint,) = (copied / "trunks").glob("*b64-seed1/last.pt")
    for path in checkpoint.parent.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    run(plan_of(), copied)  # nothing is missing
    (copied / "runs" / "mutation-seed1" / "result.json").unlink()
    with pytest.raises(InputError, match=r"corrupt.*delete it") as caught:
        run(plan_of(), copied)
    assert str(checkpoint) in str(caught.value)
    for path in checkpoint.parent.iterdir():
        path.unlink()
    run(plan_of(), copied)
    assert weights(copied) == weights(finished)


# Where to write


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty and holds no comparison: choose another"):
        check_directory(plan_of(), tmp_path)
    with pytest.raises(InputError, match="is a file: choose a directory"):
        check_directory(plan_of(), tmp_path / "thesis.tex")
    with pytest.raises(InputError, match=r"cannot be made: .* is a file: choose a directory"):
        run(plan_of(), tmp_path / "thesis.tex" / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("without_report")
def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    run(plan_of(seeds=1, arms="sgd"), tmp_path)
    assert len(read_json(tmp_path / "results.json")["runs"]) == 1


# Arms of one's own


@pytest.mark.usefixtures("without_report")
def test_one_method_under_two_labels_and_an_arm_with_a_trunk_of_its_own(tmp_path: Path) -> None:
    plan = plan_of(
        seeds=1,
        accept="always",
        arms=[
            "sgd",
            {"method": "mutation", "label": "small", "sigma": 0.01},
            {"method": "mutation", "label": "big", "sigma": 0.5},
            {"method": "sgd", "label": "slow", "lr": 0.001},
        ],
    )
    run(plan, tmp_path)
    results = read_json(tmp_path / "results.json")
    assert [r["arm"] for r in results["runs"]] == ["sgd", "small", "big", "slow"]
    assert sorted(p.name for p in (tmp_path / "trunks").iterdir()) == [
        "sgd-lr0.001-m0.9-b64-seed0",
        "sgd-lr0.1-m0.9-b64-seed0",
    ]
    tensors = {
        label: load_file(tmp_path / "runs" / f"{label}-seed0" / "model.safetensors")
        for label in ("sgd", "small", "big", "slow")
    }
    for one, other in itertools.combinations(tensors, 2):
        assert not torch.equal(tensors[one]["head.weight"], tensors[other]["head.weight"])


# A dry run


def test_a_dry_run_tells_arms_budgets_hours_and_disk(tmp_path: Path) -> None:
    plan = plan_of(seeds="3,5")
    guess = estimate(plan)
    text = describe_plan(plan, guess)
    facts = plan_facts(plan, guess)
    assert facts["seeds"] == [3, 5]
    assert {label: arm["sample_forwards"] for label, arm in facts["arms"].items()} == plan.budgets
    assert facts["hours"] == guess.hours > 0
    assert "100 train, 40 fitness, 20 accept, 50 test; model mlp" in text
    assert "2 seeds: 3, 5; 3 epochs, evolution from 2" in text
    assert re.search(r"  sgd: 1,\d\d\d sample-forwards \(its epochs: 900; .*\), \d", text)
    assert "10 classes: 0 178, " in text
    assert "no accept examples" not in text
    assert "8 runs of these are finished" in describe_plan(plan, guess, kept=8)
    assert all(f"  {arm}: " in text for arm in ARMS)
    assert "2 trunks (the epochs that arms share): " in text
    assert "in all: " in text
    assert " MB on disk" in text
    assert re.search(
        r"in all: .* of one job, .* or more of 4 jobs, ", describe_plan(plan, guess, jobs=4)
    )
    # at most a generation more, which scores 4 members and the parent, and judges two of them
    assert "the budget of 1,440 sample-forwards: they may spend 1.00 to 1.17 times as much." in text


@pytest.mark.usefixtures("without_report")
def test_no_run_passes_its_budget_by_more_than_a_dry_run_tells(tmp_path: Path) -> None:
    plan = plan_of(arms="swa,soup-cycle,esgd,snes-head", model="small-cnn", seeds=1)
    run(plan, tmp_path / "out")
    for arm in plan.arms:
        (spent,) = (
            result["sample_forwards"]
            for (label, _), result in finished_runs(tmp_path / "out").items()
            if label == arm.label
        )
        budget = plan.budgets[arm.label]
        assert budget is not None
        assert budget <= spent <= budget + PROCEDURES[arm.procedure].excess(arm, plan.sizes)
