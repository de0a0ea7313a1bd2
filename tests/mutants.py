"""Break the library on purpose, one named mistake at a time, and see whether a test notices.

`mutants.toml` names the mistakes: the file below src/evostep, a text that stands in it exactly
once, what takes its place, and the tests that must fail then. Sources are changed in a copy.

    python tests/mutants.py                          # all: some ten minutes
    python tests/mutants.py --only ladder-factor     # one; the option may come several times
    python tests/mutants.py --check                  # whether all texts and tests are there
    python tests/mutants.py --sound                  # first see that the tests pass without
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


def check(one: Mutant, root: Path = ROOT) -> list[str]:
    """Return what of a mutant is not there: its text, once in its file, or a test."""
    path = root / "src" / "evostep" / one.file
    times = path.read_text().count(one.old) if path.is_file() else 0
    wrong = [] if times == 1 else [f"{one.name}: its text stands {times} times in {one.file}"]
    for test in one.tests:
        file, _, name = test.partition("::")
        path = root / "tests" / file
        head = f"def {name.partition('[')[0]}(" if name else ""
        if not path.is_file() or head not in path.read_text():
            wrong.append(f"{one.name}: there is no test {test}")
    return wrong


def run(mutants: Sequence[Mutant], root: Path = ROOT, *, sound: bool = False) -> dict[str, str]:
    """Return what became of each mutant: "killed", "survived" or "broken"; tell it as it goes.

    Args:
        mutants: to try.
        root: of the tree that has the library and its tests.
        sound: whether to see first that all their tests pass without a mutant.
    """
    results: dict[str, str] = {}
    for name in _PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(root / "src", source)
        tests = sorted({test for one in mutants for test in one.tests})
        if sound and _pytest(root, source, tests, expected=(0,), seconds=None) != 0:
            raise SystemExit("the tests do not pass without a mutant: nothing can be told")
        for one in mutants:
            began = time.monotonic()
            results[one.name] = _try(one, root, source)
            print(f"{results[one.name]:9}{time.monotonic() - began:5.0f} s  {one.name}", flush=True)
    return results


def _try(one: Mutant, root: Path, source: Path) -> str:
    wrong = check(one, root)
    if wrong:
        print(*wrong, sep="\n")
        return "broken"
    path = source / "evostep" / one.file
    text = path.read_text()
    path.write_text(text.replace(one.old, one.new))
    try:
        status = _pytest(root, source, one.tests)
    finally:
        path.write_text(text)
    # 1: a test failed; anything else but 0: it could not even be collected
    return {0: "survived", 1: "killed"}.get(status, "broken")


def _pytest(
    root: Path,
    source: Path,
    tests: Sequence[str],
    *,
    expected: Sequence[int] = (0, 1),
    seconds: float | None = SECONDS,
) -> int:
    """Run tests against the sources, and return pytest's exit status; show one not expected.

    In a fork, which has imported all but the library already: that is most of the time.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(root, source, tests, output.fileno())
        )
        child.start()
        child.join(seconds)
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
    parser.add_argument("--sound", action="store_true", help="first run the tests without a mutant")
    parser.add_argument("--check", action="store_true", help="look for texts and tests, run none")
    asked = parser.parse_args()
    mutants = read_table()
    unknown = set(asked.only or ()) - {one.name for one in mutants}
    if unknown:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))} in {TABLE.name}")
    chosen = [one for one in mutants if not asked.only or one.name in asked.only]
    if asked.check:
        wrong = [line for one in chosen for line in check(one)]
        print(*wrong, f"{len(chosen)} mutants, {len(wrong)} texts or tests missing", sep="\n")
        return int(bool(wrong))
    results = run(chosen, sound=asked.sound)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1) + "\n")
    files = {one.file for one in mutants if one.name in results}
    killed = sum(result == "killed" for result in results.values())
    print(f"{killed} of {len(results)} mutants killed, in {len(files)} files")
    return int(killed < len(results))


if __name__ == "__main__":
    sys.exit(main())
