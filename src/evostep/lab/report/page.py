"""Table, figures and page of a comparison, from the records that its runs left behind."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

from evostep.errors import printable
from evostep.lab.report import contrasts, wording
from evostep.lab.report.records import read_records
from evostep.lab.report.registered import registered_verdict
from evostep.lab.report.spreadsheet import runs_csv
from evostep.lab.report.statistics import is_finite
from evostep.lab.report.summary import summarise
from evostep.lab.report.verdict import sentence, verdict
from evostep.lab.storage import write_bytes, writing

PARTS = ("train", "fitness", "accept", "test")


@dataclass(frozen=True)
class ReportPaths:
    """Where `write_report` wrote: the table, the page, and the figures (SVG and PNG).

    `summary` is what a terminal shows of them, in lines of at most 80 signs.
    """

    table: Path
    page: Path
    figures: tuple[Path, ...]
    summary: str = ""


def write_report(directory: Path) -> ReportPaths:
    """Write `table.md`, `report.html`, `runs.csv` and `figures/` beside the records.

    Statistics are computed from the runs, whatever "arms" and "contrasts" the file holds; runs may
    be missing, and so may `history.jsonl` or lines of it. Each file is replaced as a whole, and
    none before all are ready; figures of an earlier report that are no longer drawn are removed.
    The page needs no other file and no network.

    Args:
        directory: holds `results.json` and, for the curves, `history.jsonl`.

    Raises:
        InputError: `results.json` is missing, malformed or of another format.

    Example:
        >>> write_report(Path("no-such-directory"))
        Traceback (most recent call last):
        ...
        evostep.errors.InputError: no results.json in 'no-such-directory': give the directory that \
`evostep compare --out` wrote
    """
    # matplotlib, which runs can spare
    from evostep.lab.report.figures import FIGURES, OUTDATED, draw_figures
    from evostep.lab.report.figures.drawing import page_colours

    directory = Path(directory)
    results, history, skipped = read_records(directory)
    drawings = draw_figures(results, history)
    context = report_context(results, skipped)
    context |= {
        "figures": drawings,
        "colours": page_colours(results),
        "records": [n for n in ("results.json", "history.jsonl") if (directory / n).exists()],
    }
    files: dict[Path, bytes] = {
        directory / "runs.csv": runs_csv(results).encode("utf-8", "replace")
    }
    for drawing in drawings:
        files[directory / "figures" / f"{drawing.name}.svg"] = drawing.svg.encode()
        files[directory / "figures" / f"{drawing.name}.png"] = drawing.png
    figures = tuple(path for path in files if path.parent.name == "figures")
    table, page = directory / "table.md", directory / "report.html"
    files[table] = render_template("table.md.j2", context).encode()
    files[page] = render_template("report.html.j2", context).encode()
    for path, content in files.items():
        write_bytes(path, content)
    for name in (*FIGURES, *OUTDATED):  # what an earlier report drew and this one has no data for
        for path in (directory / "figures" / f"{name}.svg", directory / "figures" / f"{name}.png"):
            if path not in files:
                with writing(path):
                    path.unlink(missing_ok=True)
    summary = summarise(results, context, contrasts.control_labels(results))
    return ReportPaths(table, page, figures, summary)


def report_context(results: Mapping[str, Any], skipped: int = 0) -> dict[str, Any]:
    """Return what all templates show, as text: the numbers are worded once, here.

    Args:
        results: with "arms" and "contrasts", see `records.read_records`.
        skipped: lines of the history that could not be read.
    """
    config, environment = results["config"], results["environment"]
    metric = contrasts.main_metric(results)
    controls = contrasts.control_labels(results)
    strongest = contrasts.strongest_control(
        results["runs"], metric, controls, higher=contrasts.higher_is_better(metric)
    )
    fraction = wording.is_fraction(metric)
    labels = [a for a in contrasts.arm_labels(results) if _runs_of(results, a)]
    used = [c for c in controls if any(row["control"] == c for row in results["contrasts"])]
    sentences = [sentence(row) for row in results["contrasts"] if row["metric"] == metric]
    seeds = config.get("seeds") or sorted({run["seed"] for run in results["runs"]})
    expected = len(contrasts.arm_labels(results)) * len(seeds)
    return {
        "title": results["data"].get("title") or config.get("data") or "unnamed data",
        "model": config.get("model") or "unnamed model",
        "seeds": len(seeds),
        "missing": max(0, expected - len(results["runs"])),
        "expected": expected,
        "metric": metric,
        "fraction": fraction,
        "unit": " (%)" if fraction else "",
        "contrast_unit": "points" if fraction else metric,
        "controls": used,
        "rows": [_row(results, label, metric, used, strongest) for label in labels],
        "verdict": _verdict(results, metric, controls, strongest),
        "sentences": sentences,
        "brief": False,
        "splits": _splits(results["splits"]),
        "arms": [
            (arm["label"], {k: wording.plain(v) for k, v in arm.items() if k != "label"})
            for arm in config.get("arms") or []
        ],
        "config": {k: wording.plain(v) for k, v in config.items() if k != "arms"},
        "data": {k: wording.plain(v) for k, v in results["data"].items()},
        "environment": {k: wording.plain(v) for k, v in environment.items() if k != "command"},
        "command": environment.get("command") or "not recorded",
        "stamp": wording.stamp(environment),
        "spent": _spent(results),
        "skipped": skipped,
        "absent": wording.ABSENT,
    }


def _verdict(
    results: Mapping[str, Any], metric: str, controls: Sequence[str], strongest: str | None
) -> dict[str, Any]:
    """Return the verdict; where a contrast was registered, that is what the headline tells."""
    found = verdict(results, metric, controls, strongest)
    registered = registered_verdict(results)
    if registered is None:
        return found
    return {"headline": registered, "details": [found["headline"], *found["details"]]}


def _row(
    results: Mapping[str, Any],
    label: str,
    metric: str,
    controls: Sequence[str],
    strongest: str | None,
) -> dict[str, Any]:
    runs = _runs_of(results, label)
    whole = [run for run in runs if not run.get("diverged")] or runs
    summary = _find(results["arms"], arm=label, metric=metric)
    train, test = (
        _mean((run.get(part) or {}).get("accuracy") for run in whole) for part in PARTS[::3]
    )
    loss = _mean(run["test"].get("loss") for run in whole)
    forwards = _mean(run.get("sample_forwards") for run in whole)
    first = _runs_of(results, controls[0]) if controls else []
    first = [run for run in first if not run.get("diverged")] or first
    reference = _mean(run.get("sample_forwards") for run in first)
    relative = gap = wording.ABSENT
    if forwards is not None and reference:
        relative = f"{forwards / reference:.2f}"
    if train is not None and test is not None:
        gap = wording.signed(train - test, "accuracy")
    return {
        "arm": label,
        "strongest": label == strongest,
        "n": (summary or {"n": 0})["n"],
        "score": wording.score(summary, metric),
        "interval": wording.interval(summary, metric),
        "contrasts": [
            wording.contrast_cell(_find(results["contrasts"], arm=label, control=c, metric=metric))
            for c in controls
        ],
        "accuracy": wording.percent(test),
        "loss": wording.ABSENT if loss is None else f"{loss:.4f}",
        "train": wording.percent(train),
        "gap": gap,
        "forwards": wording.ABSENT if forwards is None else f"{forwards / 1e6:.3f}",
        "relative": relative,
        "generations": wording.generations(runs),
        "minutes": wording.minutes(_mean(run.get("seconds") for run in whole)),
    }


def _spent(results: Mapping[str, Any]) -> str:
    """Return what runs spent of their common budget, in words; empty where they had none."""
    budget = results["config"].get("budget")
    spent = [run.get("sample_forwards") for run in results["runs"] if not run.get("diverged")]
    if not budget or not spent or not all(spent):
        return ""
    return wording.of_budget(budget, "they spent", min(spent), max(spent))


def _mean(values: Any) -> float | None:
    """Return the mean; None where a value is missing or not finite: the others' would mislead."""
    found = list(values)
    complete = all(map(is_finite, found))
    return fmean(found) if found and complete else None


def _runs_of(results: Mapping[str, Any], label: str) -> list[Mapping[str, Any]]:
    return [run for run in results["runs"] if run["arm"] == label]


def _find(rows: Sequence[dict[str, Any]], **keys: str) -> dict[str, Any] | None:
    return next((row for row in rows if keys.items() <= row.items()), None)


def _splits(splits: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each seed the size and hash of each part, in the order of PARTS."""
    table = []
    for seed, parts in splits.items():
        cells = [parts.get(p) if isinstance(parts, dict) else None for p in PARTS]
        shown = [c if isinstance(c, dict) else {} for c in cells]
        sizes = [wording.plain(c.get("n", wording.ABSENT)) for c in shown]
        hashes = [str(c.get("sha256", "")) for c in shown]
        table.append((seed, list(zip(sizes, hashes, strict=True))))
    return table


def render_template(name: str, context: Mapping[str, Any]) -> str:
    """Return a template of the reports' filled in; values are escaped where it is a page."""
    template = _templates(escape=name.endswith(".html.j2")).get_template(name)
    return str(template.render(context))


@functools.cache
def _templates(*, escape: bool) -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    templates = resources.files("evostep.lab.report") / "templates"
    environment = Environment(
        loader=FunctionLoader(lambda file: (templates / file).read_text(encoding="utf-8")),
        autoescape=escape,  # labels come from users
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = wording.markdown
    return environment
