"""Runs of the lab: what diverges, what is full, shared, corrupt or published, in one line each."""

import errno
import io
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from evostep.cli import main
from evostep.errors import DiskError, InputError
from evostep.lab.arms.precedence import make_arms
from evostep.lab.checkpoints import save_checkpoint
from evostep.lab.claims import claimed
from evostep.lab.comparison import compare as compare_module
from evostep.lab.comparison.compare import compare
from evostep.lab.comparison.directory import check_directory, is_complete, known_plan
from evostep.lab.comparison.environment import merge_environments
from evostep.lab.comparison.plan import make_plan
from evostep.lab.options import Options, parse_seeds
from evostep.lab.report.records import read_records
from evostep.lab.storage import History, read_json, write_json
from evostep.lab.weights import save_weights

TINY: dict[str, Any] = {
    "model": "mlp",
    "train_size": 100,
    "test_size": 50,
    "fitness_size": 40,
    "epochs": 3,
    "evolve_from": 2,
    "generations": 1,
    "population": 4,
    "lr": 0.1,
    "seeds": 1,
    "threads": 1,
    "arms": "sgd,mutation",
}


def options_of(**options: Any) -> Options:
    return Options(**{**TINY, **options})


def run(directory: Path, **options: Any) -> str:
    file = io.StringIO()
    compare(make_plan(options_of(**options)), directory, Console(file=file, width=200))
    return file.getvalue()


@pytest.fixture(scope="module", autouse=True)
def _no_report() -> Iterator[None]:
    """Figures take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "write_report", lambda directory: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "out"
    run(directory)
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


# What diverges


@pytest.mark.parametrize("evolve_from", [0, 2])
def test_a_run_that_diverges_ends_there_and_says_so(evolve_from: int, tmp_path: Path) -> None:
    slow = {"method": "sgd", "label": "slow", "lr": 0.1}
    arms = ["sgd", "mutation", slow]
    printed = run(tmp_path, lr=1e30, arms=arms, evolve_from=evolve_from)
    results = read_json(tmp_path / "results.json")
    *broken, whole = results["runs"]
    for result in broken:
        assert "loss" in result["diverged"]
        assert result["test"] == {"accuracy": None, "loss": None}
        assert result["sample_forwards"] < results["config"]["budget"] / 2
        assert result["generations"] == 0
    assert "diverged: training loss" in printed
    assert "diverged" not in whole
    assert whole["test"]["accuracy"] > 0.1
    rows = {row["arm"]: row for row in results["arms"] if row["metric"] == "accuracy"}
    assert (rows["sgd"]["mean"], rows["sgd"]["not_finite"]) == (None, 1)
    assert run(tmp_path, lr=1e30, arms=arms, evolve_from=evolve_from).startswith("3 finished runs")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    for name in ("weight_decay", "lr", "momentum", "sigma"):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} must be a finite number"):
            options_of(**{name: value})
    for arm in ({"lr": value}, {"strategy": {"sigma": value}}, {"sigma": value}):
        with pytest.raises(InputError, match="must be a finite number"):
            make_arms(options_of(arms=[{"method": "mutation", **arm}]))


# Settings without effect


def test_settings_of_a_method_that_is_no_arm() -> None:
    given = {"strategies": {"openai-es": {"sigma": 0.1}}}
    with pytest.raises(InputError, match=r"--openai-es\.sigma has no effect: .* \(sgd, mutation\)"):
        make_arms(options_of(**given))
    with pytest.warns(UserWarning, match=r"--openai-es\.sigma has no effect"):
        make_arms(options_of(**given, from_file=True))
    with pytest.warns(UserWarning, match=r"--population has no effect: of the arms .sgd. none"):
        make_arms(options_of(arms="sgd", given=frozenset({"population"})))


# Budgets


def test_a_budget_keeps_arms_comparable_with_those_that_are_there(copied: Path) -> None:
    dear = {"method": "mutation", "label": "dear", "population": 40}
    budget = read_json(copied / "results.json")["config"]["budget"]
    for arms in ("sgd", ["sgd", "mutation", dear]):
        plan = make_plan(options_of(arms=arms))
        with pytest.raises(InputError, match=f"keep it with --budget {budget}"):
            check_directory(plan, copied)
        check_directory(make_plan(options_of(arms=arms, budget=budget)), copied)
    with pytest.raises(InputError, match=r"--budget 600 is too small .* trunk ends after 600"):
        make_plan(options_of(arms="sgd", budget=600))
    with pytest.raises(InputError, match="exclude each other"):
        options_of(budget=budget, equal_budget=False)


# What is written down


def test_each_run_keeps_its_environment(copied: Path) -> None:
    path = copied / "runs" / "sgd-seed0" / "result.json"
    result = read_json(path)
    result["environment"]["threads"] = 7
    write_json(path, result)
    older = copied / "runs" / "mutation-seed0" / "result.json"  # as older versions wrote it
    write_json(older, {k: v for k, v in read_json(older).items() if k != "environment"})
    run(copied)
    results = read_json(copied / "results.json")
    threads = {r["arm"]: r["environment"]["threads"] for r in results["runs"]}
    assert threads == {"sgd": 7, "mutation": 1}
    assert sorted(results["environment"]["threads"].split(" and ")) == ["1", "7"]
    assert merge_environments([{"date": "2"}, {"date": "1"}]) == {"date": "2"}


def test_weights_have_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_weights(tmp_path / "m.safetensors", torch.nn.Linear(1, 1))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


# Plans that are corrupt or were not published


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"arms": {"sgd": 1}, "options": {}}'])
@pytest.mark.filterwarnings("ignore:.*made again from results.json")
def test_a_plan_is_made_again_from_the_results(content: bytes | None, copied: Path) -> None:
    path = copied / "plan.json"
    before = read_json(path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert run(copied).startswith("2 finished runs")
    assert read_json(path) == before
    (copied / "results.json").unlink()
    path.write_bytes(b"[]")
    with pytest.raises(InputError, match=r"restore it or results.json from a copy"):
        known_plan(copied)


def test_a_published_comparison_is_gone_on_with(copied: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    published.mkdir()
    for name in ("results.json", "history.jsonl"):
        shutil.copy(copied / name, published / name)
    assert is_complete(options_of(), published)
    assert not is_complete(options_of(seeds=2), published)
    assert not is_complete(options_of(lr=0.2), published)
    before = {r["arm"]: r for r in read_json(published / "results.json")["runs"]}
    assert run(published, seeds="0,1").startswith("2 finished runs")
    runs = read_json(published / "results.json")["runs"]
    assert len(runs) == 4
    assert {r["arm"]: r for r in runs if r["seed"] == 0} == before


# The disk, and who else is there


@pytest.fixture
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, 1)
    for write in (
        lambda: write_json(path, list(range(10_000))),
        lambda: save_checkpoint(path, {"w": torch.zeros(10_000)}),
        lambda: save_weights(path, torch.nn.Linear(200, 200)),
        lambda: History(tmp_path / "h.jsonl").append({"x": list(range(10_000))}),
    ):
        with pytest.raises(DiskError, match=r"cannot write .*too large.*: free some space") as told:
            write()
        assert "\n" not in str(told.value)
    assert DiskError.exit_code == 1
    assert read_json(path) == 1
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "io.open", "os.open"])
def test_a_disk_that_fails_or_becomes_read_only_is_one_line_and_nothing_is_lost(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, history = tmp_path / "x.json", History(tmp_path / "h.jsonl")
    write_json(path, 1)
    history.append({})
    model = torch.nn.Linear(2, 2)
    before = path.read_bytes(), history.path.read_bytes()

    def fails(place: Any, *args: Any, **options: Any) -> Any:
        writes = "w" in str(args[:1]) or "a" in str(args[:1])
        if call == "io.open" and not writes:
            return original(place, *args, **options)
        raise OSError(code, os.strerror(code), str(place))

    owner, name = {"os": os, "io": io}[call.partition(".")[0]], call.partition(".")[2]
    original = getattr(owner, name)
    writes: dict[str, Callable[[], object]] = {
        "json": lambda: write_json(path, 2),
        "checkpoint": lambda: save_checkpoint(path, {"w": torch.zeros(2)}),
        "weights": lambda: save_weights(path, model),
    }
    if call in ("io.open", "os.fsync"):
        writes["history"] = lambda: (history.append({"x": 1}), history.sync())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        for kind, write in writes.items():
            if kind == "weights" and call == "io.open":  # they are not written by Python
                continue
            with pytest.raises(
                DiskError, match=r"^cannot write .*: mend the disk, .* and the"
            ) as e:
                write()
            assert "\n" not in str(e.value)
            assert os.strerror(code) in str(e.value)
    assert path.read_bytes() == before[0]
    assert history.path.read_bytes().startswith(before[1])
    write_json(path, 2)
    assert read_json(path) == 2


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "x.json", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"cannot write .*: choose another --out") as told:
            write_json(path, 1)
        assert told.value.exit_code == 2
    with pytest.raises(InputError, match="cannot write"):
        History(tmp_path / "folder").append({})


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(InputError, match="another evostep is at work in"):
        run(tmp_path)
    with claimed(tmp_path):
        pass  # the lock died with its owner
    assert not list(tmp_path.iterdir())


# Wrong types


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("results.json", {"runs": [{"arm": "a", "seed": "x", "test": {}}]}),
        ("results.json", {"runs": [{"arm": "a", "seed": 0, "test": {"accuracy": "x"}}]}),
        ("results.json", {"config": {"arms": [{"label": 3}]}}),
        ("results.json", {"config": 3}),
        ("results.json", {"config": {"arms": None}}),
        ("results.json", {"environment": {"cores": [1]}}),
    ],
)
def test_results_of_wrong_types_are_told(name: str, change: Any, copied: Path) -> None:
    path = copied / name
    path.write_text(json.dumps({**read_json(path), **change}))
    with pytest.raises(InputError, match="is not what evostep wrote") as told:
        read_records(copied)
    assert "\n" not in str(told.value)


def test_lines_of_history_of_wrong_types_are_passed_over(copied: Path) -> None:
    _, whole, skipped = read_records(copied)
    assert skipped == 0
    bad = ['{"train": 5}', '{"scores": "x"}', '{"epoch": "1"}', '{"fitness": {"loss": []}}']
    with (copied / "history.jsonl").open("ab") as file:
        for line in bad:
            record = {"arm": "a", "kind": "epoch", "seed": 0, "epoch": 1, **json.loads(line)}
            file.write(json.dumps(record).encode() + b"\n")
        file.write(b"\xff\xfe\n[[[\n3\n")
    _, records, skipped = read_records(copied)
    assert (records, skipped) == (whole, len(bad) + 3)


@pytest.mark.parametrize("change", [{"seed": "0"}, {"test": 3}, {"arm": None}, {"seconds": "x"}])
def test_a_result_of_wrong_types_is_told(change: dict[str, Any], copied: Path) -> None:
    path = copied / "runs" / "sgd-seed0" / "result.json"
    path.write_text(json.dumps({**read_json(path), **change}))
    with pytest.raises(InputError, match=r"result\.json is not what evostep wrote .*: delete it"):
        run(copied)


# Options and configurations


def test_seeds_that_torch_cannot_take() -> None:
    assert parse_seeds("18446744073709551615,") == [2**64 - 1]
    for seeds in ("18446744073709551616,", [2**64]):
        with pytest.raises(InputError, match=r"is too large: give at most 2\^64 - 1"):
            parse_seeds(seeds)
    with pytest.raises(InputError, match="stands for 99999999999 seeds"):
        parse_seeds(99999999999)


@pytest.mark.parametrize("noise", ["low-rank-0", "low-rank", "low-rank-x", "low-rank-9999999999"])
def test_a_rank_that_is_none(noise: str) -> None:
    with pytest.raises(InputError, match=f"noise '{noise}' has no rank of 1 or more"):
        make_arms(options_of(strategies={"mutation": {"noise": noise}}))


def test_a_label_too_long_for_a_folder() -> None:
    with pytest.raises(InputError, match="has 250 characters: give at most 100"):
        make_arms(options_of(arms=[{"method": "sgd", "label": "x" * 250}]))


def test_a_metric_that_is_none_is_told_before_anything_is_trained() -> None:
    with pytest.raises(InputError, match=r"--metric math:sin fails on outputs \(40, 10\)"):
        make_plan(options_of(metric="math:sin"))


@pytest.mark.parametrize(
    "content",
    [bytes(range(256)), b"", b"arms: &a [*a]\n", b"&a\nmutation: *a\n", b"- 1\n", b"epochs: 3\0\n"],
)
def test_a_configuration_that_is_none(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as left:
        main(["compare", f"--config={tmp_path / 'c.yaml'}", f"--out={tmp_path / 'out'}"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evostep: error: ")
