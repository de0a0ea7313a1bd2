"""``evostep compare``: arms on equal data and equal compute, over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.cli.options import WHERE, add_option, add_options, make_options
from evostep.cli.output import answer, manner, note, progress_console
from evostep.cli.ranks import check_arms
from evostep.cli.schema import read_schema
from evostep.lab.options import one_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from evostep.lab.comparison.executors import Execution
    from evostep.lab.comparison.plan import Plan
    from evostep.lab.report.page import ReportPaths

SUMMARY = "compare arms over seeds"
DESCRIPTION = (
    "Compare arms on equal data and equal compute, over seeds. The same command on a directory "
    "with finished runs continues with the missing ones."
)
USAGE = "evostep compare [--out DIR] [option ...]"


def add_arguments(parser: ArgumentParser, *, everything: bool = True) -> None:
    """Add the command's arguments."""
    from argparse import SUPPRESS

    add_options(parser, everything=everything)
    text = "print arms, budgets, expected hours and disk; run nothing"
    add_option(parser, "dry_run", bool, False, text)
    known = read_schema()["names"]["executor"]
    text = f"where runs are done: {', '.join(known)}"
    add_option(parser, "executor", one_of(known), "local", text)
    text = "runs at once, each in a process of its own; the results are the same (default: 1)"
    add_option(parser, "jobs", int | None, None, text, metavar="N")
    for name, kind, text in (
        (
            "address",
            str | None,
            "of a Ray cluster, auto or HOST:PORT; default: one started here",
        ),
        ("num_cpus", float | None, "CPUs that Ray gives a run; default: as many as its --threads"),
        ("num_gpus", float | None, "GPUs that Ray gives a run; default: 0"),
    ):
        add_option(parser, name, kind, None, text if everything else SUPPRESS)


def run(parsed: Any) -> None:
    """Run the command."""
    options = make_options(parsed)
    from evostep.lab.comparison.executors import Execution

    how = Execution(**{name: parsed[name] for name in WHERE if name in parsed})
    from evostep.lab.comparison.compare import describe_plan, plan_facts
    from evostep.lab.comparison.directory import check_directory, finished_runs, is_complete
    from evostep.lab.comparison.estimate import estimate
    from evostep.lab.comparison.plan import make_plan
    from evostep.lab.storage import check_room, check_writable

    check_writable(parsed.out)  # before data are read, which may take long
    if is_complete(options, parsed.out):
        from evostep.lab.report.page import write_report

        told = f"{parsed.out} holds every run of this comparison: nothing is run"
        if parsed.get("dry_run"):
            answer(told, {"out": parsed.out, "finished": True})
        else:
            note(told)
            show(write_report(parsed.out))
        return
    plan = make_plan(options)
    check_directory(plan, parsed.out)
    if parsed.get("dry_run"):
        guess, kept = estimate(plan), len(finished_runs(parsed.out))
        facts = {"out": parsed.out, "finished_runs": kept, **plan_facts(plan, guess)}
        answer(describe_plan(plan, guess, kept=kept, jobs=how.jobs or 1), facts)
        check_room(parsed.out, guess.bytes)
    else:
        run_plan(plan, parsed.out, how)


def run_plan(plan: Plan, out: Path, how: Execution | None = None) -> None:
    """Run what is missing of a plan, and print its table; progress goes to stderr."""
    from evostep.lab.comparison.compare import compare

    check_arms(plan.arms, apart=how is not None and how.side_by_side)
    show(compare(plan, out, progress_console(), every_step=manner().verbose, how=how))


def show(paths: ReportPaths) -> None:
    """Answer by the short table of a report, and where the whole is; or by its results."""
    from evostep.lab.storage import read_json

    out = paths.page.parent
    answer(
        f"{paths.summary}\n\ntable: {paths.table}\npage:  {paths.page}",
        {"out": out, "table": paths.table, "page": paths.page, **read_json(out / "results.json")},
    )
