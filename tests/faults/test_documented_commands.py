"""Every command that README, docs and configurations tell can be given, in the order told."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from evostep.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

TINY = [
    *("--data=digits", "--model=mlp", "--train-size=60", "--fitness-size=30", "--test-size=50"),
    *("--epochs=3", "--evolve-from=2", "--generations=1", "--population=4", "--threads=1"),
]
ONE = ["--seeds=1", "--arms=sgd,mutation"]
# What makes a command one of a second: how it begins -> what is added, the longest beginning first.
# Arms with strategies of their own cannot be given fewer members by an option: they are not run.
SMALL: dict[str, list[str]] = {
    "evostep polish": ["--budget=768", "--folds=3"],
    "evostep decide": [],
    "evostep evaluate": [],
    "evostep methods": [],
    "evostep report": [],
    "evostep list": [],
    "evostep doctor": [],
    "evostep sigma": ["--draws=1"],
    "evostep train": TINY,
    "evostep compare --config configs/arms": [*TINY, "--seeds=1", "--model=small-cnn", "--dry-run"],
    "evostep compare --config configs/arenas": [
        *TINY,
        *ONE,
        "--contrast=null",
        "--metric=accuracy",
        "--every=1",
    ],
    "evostep compare --config configs/": [*TINY, *ONE, "--out=new"],
    "evostep compare --data cifar10": [*TINY, *ONE],
    "evostep compare --train-size 200": [*TINY, *ONE],
}


def commands_of(text: str) -> list[str]:
    """Read the commands of a page: those of its blocks for a console, then those in a sentence."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if language in ("", "console", "sh", "bash")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(
        r"`(evostep [^`]*--out[^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    )
    found = [line.partition(" #")[0] for line in [*lines, *spans] if line.startswith("evostep ")]
    return [" ".join(command.split()) for command in found]


def commands_of_config(text: str) -> list[str]:
    return re.findall(r"^# +(evostep .*)$", text, re.MULTILINE)


def run(command: str) -> int:
    words = [word.replace("DIR", "new") for word in shlex.split(command)]
    (start, *_) = sorted((s for s in SMALL if command.startswith(s)), key=len)[::-1] or [""]
    assert start, f"{command}: how can it be tried in a second? Add it to SMALL"
    try:
        return main([*words[1:], *SMALL[start]])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in what a fresh clone holds, without spoiling it."""
    for folder in ("configs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and timing take seconds, and are tested by themselves."""
    monkeypatch.setattr("evostep.lab.report.figures.draw_figures", lambda results, history: [])
    untimed = "evostep.lab.comparison.estimate._time_generations"
    monkeypatch.setattr(untimed, lambda plan, arm, parts, forward: forward)


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_each_command_of_a_page_runs_in_its_order(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "my-classifier" in page.read_text():
        pytest.importorskip("transformers", reason="needs evostep[transformers]")
        runpy.run_path("examples/polish_texts.py")["train_and_save"](Path())
    for command in commands_of(page.read_text()):
        shutil.rmtree("new", ignore_errors=True)
        if "--executor ray" in command:  # needs a cluster: lab/comparison/executors/test_ray.py
            continue
        assert run(command) == 0, f"{command}: {capsys.readouterr().err.splitlines()[-1:]}"


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("default")
def test_the_command_of_each_configuration_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    for path in CONFIGS:
        (command,) = commands_of_config(path.read_text())
        config = re.search(r"--config (\S+)", command)
        assert config is not None
        assert ROOT / config[1] == path
        if path.stem in ("tuned-by-hand", "experts"):
            continue  # they need a model that can be tuned, or merged: lab/arms/procedures
        if "arms" not in path.parts:
            command += " --dry-run"
        assert run(command) == 0, f"{command}: {capsys.readouterr().err.splitlines()[-1:]}"


def test_a_command_that_nobody_tried_is_noticed() -> None:
    text = "```python\nevostep = 1\n```\n"
    text += "```console\nevostep new --a \\\n  --b  # comment\n```\nas `evostep x --out y` says\n"
    assert commands_of(text) == ["evostep new --a --b", "evostep x --out y"]
    with pytest.raises(AssertionError, match="Add it to SMALL"):
        run("evostep new --a --b")
