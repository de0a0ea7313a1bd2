"""``evostep train``: one arm with one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evostep.cli.compare import run_plan
from evostep.cli.options import add_option, add_options, make_options
from evostep.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "train one arm with one seed"
DESCRIPTION = (
    "Train one arm with one seed. The same command on a directory with a run goes on where that "
    "was stopped."
)
USAGE = "evostep train [--out DIR] [option ...]"


def add_arguments(parser: ArgumentParser, *, everything: bool = True) -> None:
    """Add the command's arguments."""
    add_options(parser, skip=("arms", "seeds"), everything=everything)
    parser.add_argument("--arm", type=str | dict[str, Any], default="openai-es", help="method")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    add_option(parser, "resume", bool, False, "refuse an --out that holds no run to go on with")


def run(parsed: Any) -> None:
    """Run the command."""
    seed, out = parsed.get("seed", 0), parsed.out
    if seed < 0:
        raise InputError(f"--seed must be at least 0, got {seed}")
    # one run is no contrast: what a file registers is for `evostep compare`
    fixed = {"arms": [parsed.get("arm", "openai-es")], "seeds": [seed], "contrast": None}
    options = make_options(parsed, **fixed)
    from evostep.lab.comparison.directory import check_directory
    from evostep.lab.comparison.plan import make_plan
    from evostep.lab.storage import check_writable

    check_writable(out)
    plan = make_plan(options)
    check_directory(plan, out)
    if parsed.get("resume") and not (out / "plan.json").exists():
        raise InputError(f"{out} holds no run to resume: leave --resume out")
    run_plan(plan, out)
