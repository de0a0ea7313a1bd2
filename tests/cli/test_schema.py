"""The schema is what the tables say, and the command line answers from it without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from evostep.acceptance import RULES
from evostep.cli.schema import describe, kind_of, make_schema, read_schema
from evostep.engines import ENGINES
from evostep.lab.arms.methods import METHODS


def test_the_file_is_what_the_tables_say() -> None:
    """After a change of a table: python -m evostep.cli.schema --write."""
    assert read_schema() == json.loads(json.dumps(make_schema()))


def test_it_holds_every_method_rule_and_engine() -> None:
    schema = read_schema()
    assert list(schema["methods"]) == list(METHODS)
    assert schema["options"]["accept"]["enum"] == [*RULES, None]
    assert schema["options"]["engine"]["enum"] == ["auto", *ENGINES]


@pytest.mark.parametrize(
    "kind", [int, float | None, str | int | list, Path | None, Literal["a", "b"] | None, bool]
)
def test_types_are_read_back(kind: object) -> None:
    assert kind_of(json.loads(json.dumps(describe(kind)))) == kind


PROGRAM = """
import sys
from evostep.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "numpy", "torchvision", "scipy", "matplotlib", "sklearn"} & set(sys.modules)
print(f"\\nended with {code}, imported {sorted(heavy)}")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("--help", 0, "compare arms over seeds"),
        ("--version", 0, "evostep 0."),
        ("compare --help", 0, "--help-all tells the others"),
        ("compare --help-all", 0, "of openai-es (default: 0.02)"),
        ("train --help", 0, "--resume"),
        ("report --help", 0, "evostep report DIRECTORY"),
        ("polish --help", 0, "--no-pretrained"),
        ("sigma --help", 0, "evostep sigma --model M"),
        ("doctor --help", 0, "what is missing"),
        ("list", 0, "worst-class-recall"),
        ("list models --json", 0, '{"models": {"mlp"'),
        ("list metods", 2, "did you mean methods"),
        ("-v compere", 2, "did you mean compare"),
        ("sigma --draw=3", 2, "did you mean --draws"),
        ("sigma --draws=some", 2, "expected a whole number"),
        ("compare --no-equal-bugdet", 2, "did you mean --no-equal-budget"),
        ("methods", 0, "defaults: OpenAIES(sigma=0.02"),
        ("compere", 2, "did you mean compare"),
        ("compare --out=o --epoch=3", 2, "did you mean --epochs"),
        ("compare --out=o --openai-es.sigm=3", 2, "did you mean --openai-es.sigma"),
        ("compare --out=o --arms=sgdd", 2, "did you mean sgd"),
        ("train --out=o --arm=mutatoin", 2, "did you mean mutation"),
        ("compare --out=o --metric=acuracy", 2, "did you mean accuracy"),
        ("compare --out=o --data=digit", 2, "did you mean digits"),
        ("compare --out=o --engine=vmapp", 2, "expected auto or inplace or lowrank or vmap"),
        ("compare --out=o --accept=maybe", 2, "expected improves or always"),
        ("compare --out=o --lr=fast", 2, "expected a number"),
    ],
)
def test_help_and_typos_are_answered_without_torch(
    arguments: str, code: int, told: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", PROGRAM, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.endswith(f"\nended with {code}, imported []\n")
    assert told in " ".join((done.stdout + done.stderr).split())
