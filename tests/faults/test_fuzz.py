"""Drawn files and command lines: a bounded number of what `benchmarks/fuzz.py` draws by itself."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason="benchmarks/ is not part of a source distribution"
)
TARGETS = (
    *("configuration", "yaml", "results", "history", "directory", "checkpoint", "weights"),
    *("decision", "scores", "binary-scores", "costs", "images", "idx", "main"),
)


@pytest.fixture(scope="module")
def fuzzing() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import fuzz  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(BENCHMARKS))
    return fuzz  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_drawn_is_read_or_refused_in_one_line(name: str, fuzzing: ModuleType) -> None:
    fuzzing.fuzz(name, 6 if name == "main" else 25)


def test_every_target_is_drawn_from_and_a_fault_is_noticed(fuzzing: ModuleType) -> None:
    assert {*fuzzing.TARGETS, "main"} == set(TARGETS)

    def breaks(_: Path, text: str) -> None:
        raise KeyError(text)

    strategy, _ = fuzzing.TARGETS["yaml"]
    fuzzing.TARGETS["broken"] = strategy, breaks
    try:
        with pytest.raises(KeyError):
            fuzzing.fuzz("broken", 3)
        faults = fuzzing.Faults()
        fuzzing.fuzz("broken", 3, faults)
    finally:
        del fuzzing.TARGETS["broken"]
    ((kind, entry),) = faults.found.items()
    assert kind.startswith("broken: KeyError at test_fuzz.py")
    assert entry["count"] == 3
