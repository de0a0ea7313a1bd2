"""Break the library on purpose, one named mistake at a time, and see whether a test notices.

`mutants.toml` names the mistakes: the file below src/evostep, a text that stands in it exactly
once, what takes its place, and the tests that must fail then. Sources are changed in a copy.

    python tests/mutants.py                          # all: some ten minutes
    python tests/mutants.py --only ladder-factor     # one; the option may come several times
    python tests/mutants.py --json results.json      # name -> "killed", "survived" or "broken"

The exit status is 1 where a mutant survived, or where its text or its tests were not found.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")
SECONDS = 300  # after which a mutant that hangs counts as killed
# What tests import, and what takes long to import.
_PRELOADED = (
    *("torch", "torchvision", "torchmetrics.functional.classification", "cma", "hypothesis"),
    *("scipy.stats", "sklearn.metrics", "statsmodels.stats.contingency_tables"),
)


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what is broken.
        file: below src/evostep.
        old: a text of the file.
        new: the mistake that replaces it.
        tests: pytest's node ids below tests, one of which must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_table(path: Path = TABLE) -> list[Mutant]:
    """Return the mutants of a table, in its order."""
    table = tomllib.loads(path.read_text())
    return [
        Mutant(name, row["file"], row["old"], row["new"], tuple(row["tests"]))
        for name, row in table.items()
    ]


def run(mutants: Sequence[Mutant], root: Path = ROOT) -> dict[str, str]:
    """Return what became of each mutant: "killed", "survived" or "broken"; tell it as it goes."""
    results: dict[str, str] = {}
    for name in _PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(root / "src", source)
        tests = sorted({test for one in mutants for test in one.tests})
        if _pytest(root, source, tests, expected=(0,)) != 0:
            raise SystemExit("the tests do not pass without a mutant: nothing can be told")
        for one in mutants:
            began = time.monotonic()
            results[one.name] = _try(one, root, source)
            print(f"{results[one.name]:9}{time.monotonic() - began:5.0f} s  {one.name}", flush=True)
    return results


def _try(one: Mutant, root: Path, source: Path) -> str:
    path = source / "evostep" / one.file
    text = path.read_text() if path.is_file() else ""
    if text.count(one.old) != 1 or one.new == one.old:
        print(f"{one.name}: its text stands {text.count(one.old)} times in {one.file}, not once")
        return "broken"
    path.write_text(text.replace(one.old, one.new))
    try:
        status = _pytest(root, source, one.tests)
    finally:
        path.write_text(text)
    # 1: a test failed; anything else but 0: it could not even be collected
    return {0: "survived", 1: "killed"}.get(status, "broken")


def _pytest(
    root: Path, source: Path, tests: Sequence[str], expected: Sequence[int] = (0, 1)
) -> int:
    """Run tests against the sources, and return pytest's exit status; show one not expected.

    In a fork, which has imported all but the library already: that is most of the time.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(root, source, tests, output.fileno())
        )
        child.start()
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
            child.join()
            return 1
        if child.exitcode not in expected:
            output.seek(0)
            print(output.read()[-2000:])
    return child.exitcode or 0


def _child(root: Path, source: Path, tests: Sequence[str], output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(root)
    # CI: the examples that hypothesis draws are the same each time
    os.environ |= {"PYTHONPATH": str(source), "CI": "1"}
    sys.path.insert(0, str(source))
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow"]
    options += ["-o", "addopts=--import-mode=importlib"]  # no doctests
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is preloaded
    sys.exit(int(pytest.main([*options, *(f"tests/{test}" for test in tests)])))


def main() -> int:
    """Run the mutants that were asked for; 1 where one was not killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="run this one alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    asked = parser.parse_args()
    mutants = read_table()
    unknown = set(asked.only or ()) - {one.name for one in mutants}
    if unknown:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))} in {TABLE.name}")
    results = run([one for one in mutants if not asked.only or one.name in asked.only])
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1) + "\n")
    files = {one.file for one in mutants if one.name in results}
    killed = sum(result == "killed" for result in results.values())
    print(f"{killed} of {len(results)} mutants killed, in {len(files)} files")
    return int(killed < len(results))


if __name__ == "__main__":
    sys.exit(main())
