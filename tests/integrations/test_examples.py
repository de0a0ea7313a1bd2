"""The examples of frameworks run, and docs/frameworks.md shows what stands in them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
# each with what it imports beside scikit-learn
NEEDS: dict[str, tuple[str, ...]] = {
    "plain_loop": (),
    "with_accelerate": ("accelerate",),
    "with_fabric": ("lightning",),
    "with_lightning": ("lightning",),
    "with_peft": ("peft", "transformers", "accelerate"),
    "with_processes": (),
    "with_skorch": ("skorch",),
    "with_timm": ("timm",),
    "with_tracker": (),
    "with_transformers": ("transformers", "accelerate"),
}


def test_none_is_left_out() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py") if "with_" in path.stem}
    assert found == NEEDS.keys() - {"plain_loop"}


@pytest.mark.parametrize("name", NEEDS)
def test_it_runs_and_evolution_moves_the_weights(name: str, tmp_path: Path) -> None:
    for package in NEEDS[name]:
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **settings},
    )
    assert done.returncode == 0, done.stderr
    told = re.search(r"moved the weights in (\d+) of (\d+) generations", done.stdout)
    assert told is not None, done.stdout
    assert 0 < int(told[1]) <= int(told[2])
    score = re.search(r"on its examples: ([-\d.]+) -> ([-\d.]+)", done.stdout)
    third = re.search(r"that nobody saw: [\d.]+ with it, [\d.]+ without", done.stdout)
    assert (score is None) != (third is None)  # the latter says what came out, whatever it is
    assert score is None or float(score[2]) > float(score[1])
    pairs = re.findall(r"(\d\.\d{4}) was told.* has (\d\.\d{4})", done.stdout)
    pairs += re.findall(r"here (\d\.\d{4}), .* loaded (\d\.\d{4})", done.stdout)
    assert all(one == other for one, other in pairs), done.stdout
    assert "MOVED" not in done.stdout


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_every_block_of_the_page_stands_in_an_example() -> None:
    sources = [path.read_text() for path in EXAMPLES.glob("*.py")]
    shown = blocks((ROOT / "docs" / "frameworks.md").read_text())
    assert len(shown) >= 8
    for block in shown:
        indented = (textwrap.indent(block, " " * depth) for depth in (0, 4, 8, 12))
        assert any(one in source for one in indented for source in sources), block
