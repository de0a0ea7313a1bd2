"""Comparisons whose arms start where others ended, and whose contrast is registered."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from evostep.errors import InputError
from evostep.lab.checkpoints import load_checkpoint
from evostep.lab.comparison import compare as compare_module
from evostep.lab.comparison.compare import compare
from evostep.lab.comparison.directory import check_directory, is_complete
from evostep.lab.comparison.plan import make_plan
from evostep.lab.options import Options
from evostep.lab.report.page import ReportPaths
from evostep.lab.storage import History, read_json

START = {"start-from": "sgd-all-cosine"}
CONTRAST = {
    "hypothesis": "evolving the head gains",
    "arm": "head",
    "controls": ["sgd-all-cosine", "search"],
    "metric": "accuracy",
    "tuning_seeds": [7],
    "trials": {"arm": 1, "control": 1},
}
TINY: dict[str, Any] = {
    "model": "mlp",
    "train_size": 60,
    "test_size": 50,
    "fitness_size": 40,
    "epochs": 3,
    "evolve_from": 1,
    "generations": 2,
    "population": 4,
    "batch": 32,
    "seeds": [0],
    "threads": 1,
    "contrast": CONTRAST,
    "arms": [
        "sgd-all-cosine",
        {"method": "snes-head", "label": "head", **START},
        {
            "method": "random-search",
            "label": "search",
            "space": "head",
            "strategy": {"scale": "rms"},
            **START,
        },
        {"method": "sgd", "label": "more", "lr": 0.001, **START},
    ],
}


def run(directory: Path, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        paths = ReportPaths(directory / "table.md", directory / "report.html", ())
        patch.setattr(compare_module, "write_report", lambda _: paths)
        plan = make_plan(Options(**{**TINY, **options}))
        compare(plan, directory, Console(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("starts") / "out"
    run(directory)
    return directory


def lines(directory: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read]


def test_arms_go_on_from_where_the_other_ended(finished: Path) -> None:
    (start,) = (finished / "starts").iterdir()
    weights = load_checkpoint(start / "last.pt", "cpu")["model"]  # type: ignore[arg-type]
    for label in ("head", "search"):
        ended = load_file(finished / "runs" / f"{label}-seed0" / "model.safetensors")
        moved = {name for name in weights if not weights[name].equal(ended[name])}
        assert moved <= {"head.weight", "head.bias"}, label
    more = load_file(finished / "runs" / "more-seed0" / "model.safetensors")
    assert all(not weights[name].equal(more[name]) for name in weights)
    control = load_file(finished / "runs" / "sgd-all-cosine-seed0" / "model.safetensors")
    assert all(not weights[name].equal(control[name]) for name in weights)  # it went on


def test_all_end_at_one_budget_and_evolve_without_a_gradient(finished: Path) -> None:
    results = read_json(finished / "results.json")
    budget = results["config"]["budget"]
    for result in results["runs"]:
        assert budget <= result["sample_forwards"] < budget + 6 * 40, result["arm"]
    records = lines(finished)
    kinds = {(r["arm"], r["kind"]) for r in records}
    assert ("head", "generation") in kinds
    assert ("head", "epoch") not in kinds
    shared = [r for r in records if r["arm"].startswith("start:")]
    assert {tuple(r["arms"]) for r in shared} == {("head", "search", "more")}
    further = [r["sample_forwards"] for r in shared][-1]
    first = next(r for r in records if r["arm"] == "more")
    assert first["sample_forwards"] == further + 3 * 60


class Stop(BaseException):
    """Ctrl-C, told apart from the one of whoever runs the tests."""


@pytest.mark.parametrize("every", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_again_and_again_it_gets_to_the_same_bits(
    every: int, finished: Path, tmp_path: Path
) -> None:
    append, stopped = History.append, 0
    for _ in range(40):
        count = itertools.count()

        def stopping(self: History, record: Any, count: Any = count) -> None:
            if next(count) == every:
                raise Stop
            append(self, record)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(History, "append", stopping)
            try:
                run(tmp_path)
                break
            except Stop:
                stopped += 1
    assert stopped >= 3
    assert lines(tmp_path) == lines(finished)
    for path in (finished / "runs").glob("*/model.safetensors"):
        same = tmp_path / path.relative_to(finished)
        assert same.read_bytes() == path.read_bytes(), path.parent.name


def test_the_registered_contrast_is_marked_and_cannot_be_changed(finished: Path) -> None:
    results = read_json(finished / "results.json")
    assert results["registered"]["registered"] is True
    assert results["registered"]["n"] == 1
    marked = {row["control"] for row in results["contrasts"] if row.get("registered")}
    assert marked == {"sgd-all-cosine", "search"}
    assert is_complete(Options(**TINY), finished) is False  # plan.json is there: it is no reprint
    check_directory(make_plan(Options(**TINY)), finished)
    for changed, told in (
        ({"contrast": {**CONTRAST, "controls": ["sgd-all-cosine"]}}, "--contrast.controls was"),
        ({"contrast": {**CONTRAST, "hypothesis": "it loses"}}, "--contrast.hypothesis was"),
        ({"contrast": {**CONTRAST, "arm": "more"}}, "--contrast.arm was head, now more"),
        ({"contrast": None}, "--contrast was"),
        ({"seeds": [0, 1]}, r"--contrast.seeds was \[0\], now \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=told):
            check_directory(make_plan(Options(**{**TINY, **changed})), finished)
    with pytest.raises(InputError, match="--seeds has 7, which tuning has seen"):
        make_plan(Options(**{**TINY, "seeds": [6, 7]}))


def test_a_contrast_is_not_registered_after_its_runs(tmp_path: Path) -> None:
    arms = {"arms": ["sgd", "swa"], "contrast": None}
    run(tmp_path, **arms)
    late = {**CONTRAST, "arm": "swa", "controls": ["sgd"]}
    with pytest.raises(InputError, match="--contrast was None, now"):
        check_directory(make_plan(Options(**{**TINY, **arms, "contrast": late})), tmp_path)
