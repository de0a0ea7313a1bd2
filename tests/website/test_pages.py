"""What the pages say: their blocks run, their numbers are those of the results."""

import dataclasses
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import evostep

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("digits_read_once")
@pytest.mark.parametrize("page", ["concepts", "recipes", "start"])
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = functools.partial(evostep.polish, folds=3, budget=1500, draws=200)
    monkeypatch.setattr(evostep, "polish", quick)
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{page}.md").read_text(), re.S | re.M)
    assert blocks
    names: dict[str, Any] = {"__name__": page}
    for i, block in enumerate(blocks):
        exec(compile(block, f"{page}.md, block {i}", "exec"), names)


def test_numbers_of_when_are_those_of_the_results() -> None:
    results = (DOCS / "results.md").read_text()
    text = (DOCS / "when.md").read_text()
    gains = re.findall(r"[+−]\d+\.\d\d(?: \([^)]*)?", text)
    assert len(gains) > 30
    assert [gain for gain in gains if gain not in results] == []
    rows = [[cell.strip() for cell in line.split("|")] for line in results.splitlines()]
    counts = {(row[3], row[2]) for row in rows if len(row) > 4}
    told = re.findall(r"(\d+) of (\d+)", text)
    assert len(told) >= 6
    assert [pair for pair in told if pair not in counts] == []


@pytest.mark.parametrize(
    "name",
    [
        *("RandomMutation", "OpenAIES", "SNES", "CMAES", "GuidedES", "RandomSearch", "Span"),
        *("GradientNoise", "ESGD"),
    ],
)
def test_each_method_tells_source_defaults_and_where_it_fails(name: str) -> None:
    text = (DOCS / "strategies.md").read_text()
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    assert "$$" in section
    assert "Source: " in section
    assert "Fails: " in section
    settings = inspect.signature(getattr(evostep, name)).parameters
    for line in re.findall(r"^Defaults: (.*)$", section, re.M):
        for setting, told in re.findall(r"`(\w+)` ([\d.]+\d|\d)(?=[,;.]|$)", line):
            assert float(told) == settings[setting].default, f"{name}: {setting}"
    assert "Defaults: " in section or name == "ESGD"


def test_names_that_two_sections_share_have_their_defaults() -> None:
    text = (DOCS / "strategies.md").read_text()
    for name, setting, told in re.findall(r"Defaults\s+of `(\w+)`: `(\w+)` (\d+)", text):
        assert inspect.signature(getattr(evostep, name)).parameters[setting].default == int(told)


def test_every_public_docstring_tells_arguments_and_has_an_example(website: Any) -> None:
    paths = [path for page in website("api").PAGES.values() for path in page.names]
    assert len(paths) >= len(evostep.__all__) + 2  # all but the version, and more
    for path in paths:
        module, _, name = path.rpartition(".")
        thing = getattr(importlib.import_module(f"evostep.{module}"), name)
        text = inspect.getdoc(thing) or ""
        if name not in ("NoiseStrategy", "Step"):  # shown for those that derive from Strategy
            assert "Example:\n    >>> " in text, f"{path} has no example"
        kept = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
        parameters = inspect.signature(thing).parameters if not inspect.isabstract(thing) else ()
        if parameters or kept:
            assert re.search(r"^(Args|Attributes):$", text, re.M), f"{path}: no arguments"
        for parameter in parameters:
            if name not in ("Strategy", "NoiseStrategy", "Rule"):
                assert re.search(rf"\b{parameter}\b", text), f"{path}: {parameter} is not told"


def test_every_file_of_an_algorithm_tells_its_source() -> None:
    for folder in ("strategies", "acceptance"):
        for path in (ROOT / "src/evostep" / folder).glob("*.py"):
            if path.stem not in ("__init__", "base", "random_mutation", "shaping", "tails"):
                assert "https://" in path.read_text().partition('"""\n')[0], path


@pytest.mark.parametrize("name", ["own_data", "own_metric", "own_strategy"])
@pytest.mark.slow  # a training and a search each
def test_an_example_runs_and_says_something(name: str, website: Any, tmp_path: Path) -> None:
    website("examples").run(ROOT / "examples" / f"{name}.py", tmp_path / name)
    told = (tmp_path / name / "output.txt").read_text()
    assert len(told) > 50
    assert str(tmp_path) not in told
