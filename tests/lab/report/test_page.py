"""Table, figures and page of a comparison, from invented records."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evostep.errors import InputError
from evostep.lab.report import figures as figures_module
from evostep.lab.report.figures import FIGURES
from evostep.lab.report.page import write_report
from evostep.lab.report.records import read_records

METHODS = ("sgd", "sgd-all", "mutation", "openai-es", "snes", "cma-es", "swa", "random-search")
EFFECTS = {"sgd-all": 0.012, "openai-es": 0.02, "mutation": 0.001, "snes": -0.03}


def records(arms=METHODS[:4], seeds=3, epochs=8, start=4, *, noise=0.003) -> tuple[dict, list]:
    """Invented results and history; accuracy rises to about 60%."""
    generator = np.random.default_rng(0)
    luck = generator.normal(0, 0.01, seeds)
    runs: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []

    def curve(arm: str, seed: int, epoch: int, **more: Any) -> None:
        level = 0.6 - 0.35 * math.exp(-epoch / 3) + luck[seed] + EFFECTS.get(arm, 0.0)
        train = {"accuracy": level + 0.02 * epoch, "loss": 2.0 - 1.8 * level}
        held = {"accuracy": level + generator.normal(0, noise), "loss": 2.2 - 2 * level}
        where = {"kind": "epoch", "arm": arm, "seed": seed, "epoch": epoch}
        cost = {"sample_forwards": 9000, "seconds": 4.0}
        history.append({**where, "train": train, "fitness": held, **cost, **more})

    for seed in range(seeds):
        for epoch in range(start):
            shared = [arm for arm in arms if arm != "sgd-all"]
            curve("trunk:a", seed, epoch, arms=shared)
            if "sgd-all" in arms:
                curve("trunk:b", seed, epoch, arms=["sgd-all"])
        for arm in arms:
            evolves = arm not in ("sgd", "sgd-all", "swa")
            for epoch in range(start, epochs):
                curve(arm, seed, epoch)
                for generation in range(2 if evolves else 0):
                    parent = 0.55 + 0.005 * epoch
                    scores = (parent + generator.normal(-0.01, 0.01, 8)).tolist()
                    candidate = parent + generator.normal(0, 0.005)
                    history.append({"kind": "generation", "arm": arm, "seed": seed, "epoch": epoch,
                                    "generation": 2 * (epoch - start) + generation,
                                    "scores": scores, "parent": parent, "candidate": candidate,
                                    "accepted": candidate > parent, "failed": 0, "seconds": 1.0,
                                    "sample_forwards": 9000})  # fmt: skip
            accuracy = 0.6 + luck[seed] + EFFECTS.get(arm, 0.0) + generator.normal(0, noise)
            own = [r for r in history if r["kind"] == "generation"]
            own = [r for r in own if r["arm"] == arm and r["seed"] == seed]
            runs.append({"arm": arm, "seed": seed, "test": {"accuracy": accuracy, "loss": 1.2},
                         "train": {"accuracy": 0.75, "loss": 0.6},
                         "fitness": {"accuracy": accuracy, "loss": 1.2},
                         "sample_forwards": 2_000_000, "seconds": 90.0, "generations": len(own),
                         "accepted": sum(r["accepted"] for r in own)})  # fmt: skip
    part = {"n": 1000, "sha256": "0123456789abcdef" * 4}
    results = {
        "config": {"data": "digits", "model": "small-cnn", "metric": "accuracy", "epochs": epochs,
                   "evolve_from": start, "seeds": list(range(seeds)), "budget": 2_000_000,
                   "arms": [{"label": arm, "method": arm, "sigma": 0.02} for arm in arms]},
        "environment": {"command": "evostep compare --data digits --seeds 3 --out DIR",
                        "date": "2026-01-02", "evostep": "0.1.0", "python": "3.11.2",
                        "torch": "2.14.1", "platform": "Linux", "cpu": "Two-core CPU",
                        "cores": 2, "threads": 2, "device": "cpu"},
        "data": {"title": "Handwritten digits", "classes": 10},
        "splits": {str(s): dict.fromkeys(("train", "fitness", "accept", "test"), part)
                   for s in range(seeds)},
        "runs": runs,
    }  # fmt: skip
    return results, history


def write(directory: Path, results: dict, history: list | None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results))
    if history is not None:
        lines = "".join(json.dumps(record) + "\n" for record in history)
        (directory / "history.jsonl").write_text(lines)
    return directory


class Page(HTMLParser):
    """What matters of a page: its tags with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = write(tmp_path_factory.mktemp("report"), *records())
    return directory, write_report(directory)


@pytest.fixture
def without_figures(monkeypatch) -> None:
    """Figures take seconds, and these tests read table and page alone."""
    monkeypatch.setattr(figures_module, "draw_figures", lambda results, history: [])


def test_all_files_are_written_and_nothing_else(written) -> None:
    directory, paths = written
    names = {f"{n}.{e}" for n in FIGURES for e in ("svg", "png")}
    assert {path.name for path in paths.figures} == names
    assert {path.name for path in (directory / "figures").iterdir()} == names
    assert {path.name for path in directory.iterdir()} == {
        "results.json", "history.jsonl", "table.md", "report.html", "runs.csv",
        "figures"}  # fmt: skip
    for path in paths.figures:
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")
        else:
            with Image.open(path) as image:
                assert min(image.size) > 200
                assert len(image.convert("RGB").getcolors(1 << 24)) > 10  # not an empty canvas


def test_table_states_the_computed_numbers(written) -> None:
    table = written[1].table.read_text()
    results = json.loads((written[0] / "results.json").read_text())
    by = {(r["arm"], r["seed"]): r["test"]["accuracy"] for r in results["runs"]}
    values = [by["openai-es", s] for s in range(3)]
    row = next(line for line in table.splitlines() if line.startswith("| openai-es"))
    assert f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}" in row
    difference = np.mean([by["openai-es", s] - by["sgd", s] for s in range(3)])
    assert f"{100 * difference:+.2f} (" in row
    assert "**sgd-all** (strongest control)" in table
    assert "evostep compare --data digits --seeds 3 --out DIR" in table
    assert "Two-core CPU, 2 cores, 2 threads" in table
    assert "mutation against sgd-all:" in table
    assert "no difference shown" in next(
        line for line in table.splitlines() if line.startswith("- mutation against sgd:")
    )
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert len(rows) == 2 + 4


def test_page_needs_nothing_but_itself(written) -> None:
    page = Page(written[1].page)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert links == {"results.json", "history.jsonl", "runs.csv", "table.md"}
    assert all((written[0] / str(link)).is_file() for link in links)
    for _, attributes in (pair for pair in page.tags if pair[0] != "a"):
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    source = written[1].page.read_text()
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    assert "prefers-color-scheme: dark" in source


def test_ids_are_unique_and_references_resolve(written) -> None:
    page = Page(written[1].page)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    source = written[1].page.read_text()
    referred = re.findall(r'(?:url\(|href=")#([^")]+)', source)
    assert referred
    assert set(referred) <= set(ids)


def test_figures_are_told_to_who_cannot_see_them(written) -> None:
    page = Page(written[1].page)
    drawings = [a for tag, a in page.tags if tag == "svg"]
    ids = {a.get("id") for _, a in page.tags}
    assert len(drawings) == len(FIGURES)
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set(drawing["aria-labelledby"].split()) <= ids
    assert sum(tag == "desc" for tag, _ in page.tags) == len(FIGURES)


def test_the_same_records_give_the_same_bytes(written, tmp_path) -> None:
    paths = (written[1], write_report(write(tmp_path, *records())))
    files = [[f.read_bytes() for f in (one.table, one.page, *one.figures)] for one in paths]
    assert files[0] == files[1]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("effects", "headline"),
    [
        ({"openai-es": 0.05}, "openai-es beats the control, sgd, in test accuracy, "
         "by 5.00 points; mutation is undecided, anything from"),
        ({"openai-es": 0.05, "mutation": 0.04}, "openai-es and mutation beat the "
         "control, sgd, in test accuracy, by 4.00 to 5.00 points."),
        ({"openai-es": 0.05, "mutation": -0.007}, "openai-es beats the control, sgd, in "
         "test accuracy, by 5.00 points; mutation is worse, by 0.70 points."),
        ({"openai-es": -0.06, "mutation": -0.05}, "None of the 2 arms is shown to beat the "
         "control, sgd, in test accuracy: both are worse, by 5.00 to 6.00 points."),
        ({"openai-es": 0.001, "mutation": -0.05}, "None of the 2 arms is shown to beat the "
         "control, sgd, in test accuracy: mutation is worse, by 5.00 points; openai-es "
         "is undecided, anything from"),
    ],
)  # fmt: skip
def test_verdict_is_the_computed_one(tmp_path, effects, headline) -> None:
    results, _ = records(("sgd", "openai-es", "mutation"), seeds=4)
    for run in results["runs"]:
        wobble = 0.002 * (-1) ** run["seed"] * (run["arm"] != "sgd")
        run["test"]["accuracy"] = 0.5 + 0.01 * run["seed"] + effects.get(run["arm"], 0) + wobble
    page = Page(write_report(write(tmp_path, results, [])).page)
    assert headline in page.text
    told = page.text.partition("Worse: ")[2].partition("\n")[0]
    assert ("mutation" in told) == (effects.get("mutation", 0) < 0)


def test_the_difference_stands_right_under_the_verdict_and_fits_a_phone(written) -> None:
    source = written[1].page.read_text()
    top = source[source.index("</h1>") : source.index("<h2>")]
    assert 'aria-labelledby="forest-title' in top
    assert "<li>" not in top[: top.index("<svg")]
    drawn = float(re.search(r"--drawn: ([\d.]+)pt", top)[1])
    assert 0.7 * drawn * 96 / 72 <= 390 - 2 * 20  # where the page shrinks it no further
    assert 'style="background: #' in source


@pytest.mark.usefixtures("without_figures")
def test_what_luck_explains_among_many_arms_is_not_called_better(tmp_path) -> None:
    arms = ("sgd", *(f"arm-{i}" for i in range(20)))
    results, _ = records(arms, seeds=5)
    noise = np.random.default_rng(10).normal(0, 0.01, (len(arms), 5))
    for run in results["runs"]:
        run["test"]["accuracy"] = 0.5 + noise[arms.index(run["arm"]), run["seed"]]
    paths = write_report(write(tmp_path, results, []))
    found = [row for row in read_records(tmp_path)[0]["contrasts"] if row["metric"] == "accuracy"]
    assert any(row["p"] < 0.05 for row in found)  # by chance, and its interval excludes zero
    assert "None of the 20 arms is shown to beat" in Page(paths.page).text
    assert "all 20 are undecided" in Page(paths.page).text


@pytest.mark.usefixtures("without_figures")
def test_runs_are_written_as_csv(tmp_path) -> None:
    results, _ = records(("sgd", "openai-es"), seeds=2)
    results["runs"][0]["arm"] = results["config"]["arms"][0]["label"] = 'a, "b"'
    results["runs"][-1]["test"]["accuracy"] = None
    write_report(write(tmp_path, results, None))
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == [run["arm"] for run in results["runs"]]
    assert float(rows[1]["test accuracy"]) == results["runs"][1]["test"]["accuracy"]
    assert rows[-1]["test accuracy"] == ""
    assert rows[1]["sample_forwards"] == "2000000"


@pytest.mark.usefixtures("without_figures")
def test_one_seed_gives_no_verdict(tmp_path) -> None:
    paths = write_report(write(tmp_path, *records(seeds=1, epochs=3, start=1)))
    text = Page(paths.page).text
    assert "No verdict" in text
    assert "One seed, so a difference cannot be told from luck" in text
    assert " ± " not in next(x for x in paths.table.read_text().splitlines() if "| openai-es" in x)


def test_partial_runs_and_missing_history(tmp_path) -> None:
    results, _ = records()
    results["runs"] = [r for r in results["runs"] if (r["arm"], r["seed"]) != ("openai-es", 2)]
    paths = write_report(write(tmp_path, results, None))
    assert {path.stem for path in paths.figures} == {"forest", "gap", "contrasts", "spending"}
    assert "1 of 12 runs have not finished" in Page(paths.page).text
    assert "| openai-es | 2 |" in paths.table.read_text()


def test_figures_of_an_earlier_report_are_removed(written, tmp_path) -> None:
    shutil.copytree(written[0], tmp_path, dirs_exist_ok=True)
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(FIGURES)
    (tmp_path / "figures" / "accuracy.svg").write_text("what an earlier version drew")
    (tmp_path / "figures" / "own.svg").write_text("a file that somebody else put there")
    (tmp_path / "history.jsonl").unlink()
    paths = write_report(tmp_path)
    assert {path.stem for path in paths.figures} == {"forest", "gap", "contrasts", "spending"}
    kept = {*paths.figures, tmp_path / "figures" / "own.svg"}
    assert set((tmp_path / "figures").iterdir()) == kept


@pytest.mark.usefixtures("without_figures")
def test_a_metric_that_is_no_fraction_is_said_to_be_higher_is_better(tmp_path) -> None:
    results, _ = records(("sgd", "mutation"), seeds=2)
    told = "Higher is better in test neg-loss"
    assert told not in Page(write_report(write(tmp_path, results, None)).page).text
    results["config"]["metric"] = "neg-loss"
    for run in results["runs"]:
        run["test"]["neg-loss"] = -run["test"]["loss"]
    assert told in Page(write_report(write(tmp_path, results, None)).page).text


@pytest.mark.usefixtures("without_pixels")
def test_no_runs_yet(tmp_path) -> None:
    results, history = records(("sgd",), seeds=1, epochs=2, start=1)
    results["runs"] = []
    paths = write_report(write(tmp_path, results, history))
    assert "No run has finished yet." in Page(paths.page).text
    assert "curves.svg" in {path.name for path in paths.figures}


@pytest.mark.usefixtures("without_figures")
def test_no_control_among_the_arms(tmp_path) -> None:
    results, _ = records(("mutation", "openai-es"))
    paths = write_report(write(tmp_path, results, None))
    assert "No verdict: none of the arms is a control." in Page(paths.page).text


@pytest.mark.usefixtures("without_figures")
def test_broken_lines_of_history_are_skipped_and_counted(tmp_path) -> None:
    results, history = records(("sgd",), seeds=1, epochs=2, start=1)
    directory = write(tmp_path, results, history)
    with (directory / "history.jsonl").open("a") as file:
        file.write('[1]\n{"kind": "epoch", "arm": "sgd"}\n{"kind": "generation", "arm": "op')
    assert "3 lines of history.jsonl could not be read" in Page(write_report(directory).page).text


@pytest.mark.usefixtures("without_pixels")
def test_labels_cannot_break_out_of_table_or_page(tmp_path) -> None:
    results, history = records(("sgd", "openai-es"), seeds=1, epochs=2, start=1)
    evil = '<script>alert(1)</script> $a|b` "x'
    text = json.dumps([results, history]).replace('"openai-es"', json.dumps(evil))
    paths = write_report(write(tmp_path, *json.loads(text)))
    page = Page(paths.page)
    assert "script" not in {tag for tag, _ in page.tags}
    assert evil in page.text
    rows = [line for line in paths.table.read_text().splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
    for path in paths.figures:
        if path.suffix == ".svg":
            ET.parse(path)


@pytest.mark.usefixtures("without_pixels")
def test_diverged_and_incomplete_runs_are_shown(tmp_path) -> None:
    results, history = records(("sgd", "openai-es"), seeds=2, epochs=2, start=1)
    results["runs"][-1]["test"] = {"accuracy": math.nan, "loss": math.nan}
    results["runs"][0] |= {"train": {}, "sample_forwards": None}
    history[0]["fitness"] = None
    history[-1] |= {"scores": [None, math.nan], "candidate": None}
    paths = write_report(write(tmp_path, results, history))
    assert "(1 of 2 diverged)" in paths.table.read_text()
    told = "reaches the budget of 2.000 M sample-forwards: they spent 1.00 times as much."
    results["runs"][0]["sample_forwards"] = 2_000_000
    paths = write_report(write(tmp_path, results, history))
    assert told in paths.table.read_text()
    assert told in Page(paths.page).text
    assert "nan" not in paths.table.read_text().lower()


@pytest.mark.usefixtures("without_figures")
def test_another_metric_decides_and_accuracy_stays(tmp_path) -> None:
    results, _ = records()
    results["config"]["metric"] = "macro-f1"
    for run in results["runs"]:
        bonus = 0.1 + 0.001 * run["seed"] if run["arm"] == "mutation" else 0.0
        run["test"]["macro-f1"] = 0.3 + bonus + 0.01 * run["seed"]
    paths = write_report(write(tmp_path, results, None))
    assert (
        "mutation beats the strongest control, sgd, in test macro-f1, by 10.10 points; openai-es"
        in Page(paths.page).text
    )
    assert "test accuracy (%)" in paths.table.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results.json in"),
        ("", "cannot be read"),
        ('{"runs": [', "cannot be read"),
        ("[]", r"\(it is \[\], not an object\)"),
        ("{}", r"\(it lacks 'runs'\)"),
        ('{"runs": [3]}', r"\(runs\[0\] is 3, not an object\)"),
        ('{"runs": [], "config": {"arms": ["sgd"]}}', r"config.arms\[0\] is 'sgd', not an object"),
        ('{"runs": [], "splits": 3}', "splits is 3, not an object"),
        (json.dumps({"runs": [{"arm": "a", "seed": 0, "test": {"accuracy": 1}}] * 2}), "twice"),
    ],
)
def test_bad_results_get_one_line_and_leave_nothing(tmp_path, content, message) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match=message) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before
