"""Run the examples, and keep what they print and draw for their pages.

    python website/examples.py --out build/examples

An example fails where it stops with an error: then nothing is kept of it, and so does this.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from evostep.errors import counted
from evostep.lab.comparison.environment import cpu_name

ROOT = Path(__file__).resolve().parents[1]
# What an example is given beside its name; OUT is a folder of its own.
ARGUMENTS = {
    "own_data": ["--out", "OUT/results"],
    "polish_digits": ["--out", "OUT"],
    "polish_texts": ["--out", "OUT"],
    "scores_of_trees": ["--out", "OUT/scores.csv"],
}


def run(script: Path, out: Path) -> float:
    """Run an example; return how many seconds it took.

    Args:
        script: the file.
        out: folder of its output, replaced: `output.txt`, `seconds.txt`, and the figures that it
            draws.

    Raises:
        SystemExit: it failed; the end of what it said is told.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = [word.replace("OUT", str(out)) for word in ARGUMENTS.get(script.stem, [])]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=script.parent,
        env={**os.environ, "NO_COLOR": "1"},
    )
    seconds = time.monotonic() - began
    if done.returncode:
        shutil.rmtree(out)
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-2000:]}")
    # where it ran, and how long steps took, is not what a reader is to see
    told = done.stdout.replace(f"{out}/", "").replace(str(out), "OUT")
    (out / "output.txt").write_text(re.sub(r"\n{3,}", "\n\n", told))
    where = f"{cpu_name()}, {counted(os.cpu_count() or 1, 'core')}, {datetime.date.today()}"
    (out / "seconds.txt").write_text(f"{seconds:.0f} s ({where})\n")
    return seconds


def main() -> None:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="examples; all where none is named")
    args = parser.parse_args()
    scripts = sorted((ROOT / "examples").glob("*.py"))
    for script in scripts:
        if not args.names or script.stem in args.names:
            seconds = run(script, args.out.resolve() / script.stem)
            print(f"{script.name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
