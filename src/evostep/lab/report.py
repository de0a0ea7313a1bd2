"""Table, figures and page of a comparison, from the records that its runs left behind."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from evostep.errors import InputError
from evostep.lab import statistics
from evostep.lab.figures import FRACTIONS, draw_figures

__all__ = ["ReportPaths", "read_records", "write_report"]

PARTS = ("train", "fitness", "accept", "test")
MINUS = "\N{MINUS SIGN}"
ABSENT = "–"


@dataclass(frozen=True)
class ReportPaths:
    """Where `write_report` wrote: the table, the page, and the figures (SVG and PNG)."""

    table: Path
    page: Path
    figures: tuple[Path, ...]


def write_report(directory: Path) -> ReportPaths:
    """Write `table.md`, `report.html` and `figures/` beside the records in `directory`.

    Statistics are computed from the runs, whatever "arms" and "contrasts" the file holds; runs may
    be missing, and so may `history.jsonl` or lines of it. Each file is replaced as a whole, and
    none before all are ready. The page needs no other file and no network.

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
    directory = Path(directory)
    results, history, skipped = read_records(directory)
    drawings = draw_figures(results, history)
    context = _context(results, skipped) | {"figures": drawings}
    files: dict[Path, bytes] = {}
    for drawing in drawings:
        files[directory / "figures" / f"{drawing.name}.svg"] = drawing.svg.encode()
        files[directory / "figures" / f"{drawing.name}.png"] = drawing.png
    figures = tuple(files)
    table, page = directory / "table.md", directory / "report.html"
    files[table] = _render("table.md.j2", context).encode()
    files[page] = _render("report.html.j2", context).encode()
    (directory / "figures").mkdir(exist_ok=True)
    for path, content in files.items():
        _replace(path, content)
    return ReportPaths(table, page, figures)


def read_records(
    directory: Path,
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Read the records of a comparison.

    Returns:
        The results with "arms" and "contrasts" computed; the records of the history; and the number
        of history lines that could not be read (a run that was killed leaves half a line).

    Raises:
        InputError: `results.json` is missing, malformed or of another format.
    """
    path = directory / "results.json"
    try:
        results = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"no results.json in {str(directory)!r}: "
            "give the directory that `evostep compare --out` wrote"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {str(path)!r} ({reason}): {_REPAIR}") from None
    _check_results(results, path)
    try:
        results = statistics.finish(results)
    except ValueError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    return results, *_read_history(directory / "history.jsonl")


_REPAIR = "restore the file, or run `evostep compare --out` into a new directory"


def _check_results(results: object, path: Path) -> None:
    def refuse(what: str) -> InputError:
        return InputError(f"{str(path)!r} {what}: {_REPAIR}")

    if not isinstance(results, dict) or not isinstance(results.get("runs"), list):
        raise refuse('has no list of "runs"')
    for key in ("config", "environment", "data", "splits"):
        if not isinstance(results.setdefault(key, {}), dict):
            raise refuse(f'holds {results[key]!r:.40} for "{key}", not an object')
    for arm in results["config"].get("arms") or []:
        if not isinstance(arm, dict) or not isinstance(arm.get("label"), str):
            raise refuse(f'holds the arm {arm!r:.40} without a "label"')
    for run in results["runs"]:
        good = isinstance(run, dict) and isinstance(run.get("arm"), str)
        if (
            not good
            or not isinstance(run.get("seed"), int)
            or not isinstance(run.get("test"), dict)
        ):
            raise refuse(f'holds the run {run!r:.40} without "arm", "seed" and "test"')


def _read_history(path: Path) -> tuple[list[dict[str, Any]], int]:
    records, skipped = [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in filter(str.strip, lines):
        try:
            record = json.loads(line)
            complete = (
                isinstance(record["arm"], str)
                and isinstance(record["kind"], str)
                and isinstance(record["seed"], int)
                and isinstance(record["epoch"], (int, float))
            )
        except (ValueError, KeyError, TypeError):
            complete = False
        if complete:
            records.append(record)
        else:
            skipped += 1
    return records, skipped


def _context(results: Mapping[str, Any], skipped: int) -> dict[str, Any]:
    """What both templates show, as text: the numbers are worded once, here."""
    config = results["config"]
    metric = statistics.main_metric(results)
    controls = statistics.control_labels(results)
    strongest = statistics.strongest_control(
        results["runs"], metric, controls, higher=statistics.higher_is_better(metric)
    )
    labels = [a for a in statistics.arm_labels(results) if _runs_of(results, a)]
    used = [c for c in controls if any(row["control"] == c for row in results["contrasts"])]
    sentences = [_sentence(row) for row in results["contrasts"] if row["metric"] == metric]
    seeds = config.get("seeds") or sorted({run["seed"] for run in results["runs"]})
    expected = len(statistics.arm_labels(results)) * len(seeds)
    return {
        "title": results["data"].get("title") or config.get("data") or "unnamed data",
        "model": config.get("model") or "unnamed model",
        "seeds": len(seeds),
        "missing": max(0, expected - len(results["runs"])),
        "expected": expected,
        "metric": metric,
        "unit": " (%)" if metric in FRACTIONS else "",
        "contrast_unit": "points" if metric in FRACTIONS else metric,
        "controls": used,
        "rows": [_row(results, label, metric, used, strongest) for label in labels],
        "verdict": _verdict(results, metric, controls, strongest),
        "sentences": sentences,
        "splits": _splits(results["splits"]),
        "arms": [
            (arm["label"], {k: _plain(v) for k, v in arm.items() if k != "label"})
            for arm in config.get("arms") or []
        ],
        "config": {k: _plain(v) for k, v in config.items() if k != "arms"},
        "data": {k: _plain(v) for k, v in results["data"].items()},
        "environment": {k: _plain(v) for k, v in results["environment"].items() if k != "command"},
        "command": results["environment"].get("command") or "not recorded",
        "stamp": _stamp(results["environment"]),
        "skipped": skipped,
        "absent": ABSENT,
    }


def _row(
    results: Mapping[str, Any],
    label: str,
    metric: str,
    controls: Sequence[str],
    strongest: str | None,
) -> dict[str, Any]:
    runs = _runs_of(results, label)
    summary = _find(results["arms"], arm=label, metric=metric)
    train, test = (_mean(run.get(part, {}).get("accuracy") for run in runs) for part in PARTS[::3])
    forwards = _mean(run.get("sample_forwards") for run in runs)
    plain_runs = _runs_of(results, controls[0]) if controls else []
    plain = _mean(run.get("sample_forwards") for run in plain_runs)
    minutes = _mean(run.get("seconds") for run in runs)
    return {
        "arm": label,
        "strongest": label == strongest,
        "n": len(runs),
        "score": _score(summary, metric),
        "interval": _interval(summary, metric, signed=False),
        "contrasts": [
            _contrast_cell(_find(results["contrasts"], arm=label, control=c, metric=metric))
            for c in controls
        ],
        "accuracy": _percent(test),
        "loss": ABSENT if (x := _mean(r["test"].get("loss") for r in runs)) is None else f"{x:.4f}",
        "train": _percent(train),
        "gap": ABSENT if train is None or test is None else _signed(train - test, "accuracy"),
        "forwards": ABSENT if forwards is None else f"{forwards / 1e6:.3f}",
        "relative": ABSENT if forwards is None or not plain else f"{forwards / plain:.2f}",
        "generations": _generations(runs),
        "minutes": ABSENT if minutes is None else f"{minutes / 60:.1f}",
    }


def _verdict(
    results: Mapping[str, Any], metric: str, controls: Sequence[str], strongest: str | None
) -> dict[str, Any]:
    """One plain sentence, and one for each outcome: against the strongest control alone."""
    if not results["runs"]:
        return {"headline": "No run has finished yet.", "details": []}
    if strongest is None:
        return {
            "headline": "No verdict: none of the arms is a control.",
            "details": ["Add `sgd` and `sgd-all` to the arms to learn whether evolution helps."],
        }
    rows = [
        row
        for row in results["contrasts"]
        if row["metric"] == metric and row["control"] == strongest and row["arm"] not in controls
    ]
    if not rows:
        return {
            "headline": "No verdict yet: no other arm shares a seed with the strongest control, "
            f"{strongest}.",
            "details": [],
        }
    groups: dict[str, list[str]] = {}
    for row in rows:
        text = f"{row['arm']} ({_contrast_text(row)})"
        groups.setdefault(_outcome(row), []).append(text)
    better, tested = len(groups.get("better", [])), sum(row["ci95"] is not None for row in rows)
    of = f"the strongest control, {strongest}, in test {metric}"
    if tested == 0:
        why = (
            "one seed cannot tell a difference"
            if rows[0]["n"] == 1
            else "no interval for the difference"
        )
        headline = f"No verdict: {why} from {of}."
    elif better == 0:
        subject = "The arm" if len(rows) == 1 else f"None of the {len(rows)} arms"
        verb = "was not shown to beat" if len(rows) == 1 else "was shown to beat"
        headline = f"{subject} {verb} {of}."
    else:
        names = [row["arm"] for row in rows if _outcome(row) == "better"]
        headline = f"{_listed(names)} beat{'s' if better == 1 else ''} {of}."
        if better < len(rows):
            headline += f" That is {better} of {len(rows)} arms."
    wording = {
        "better": "Better: ",
        "no difference shown": "No difference shown: ",
        "worse": "Worse: ",
        "one seed": "One seed, so a difference cannot be told from luck: ",
        "equal": "The same difference on every seed, so no interval: ",
        "diverged": "No number, since a run diverged: ",
    }
    return {
        "headline": headline,
        "details": [
            start + "; ".join(groups[key]) + "." for key, start in wording.items() if key in groups
        ],
    }


def _outcome(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "diverged"
    if row["ci95"] is None:
        return "one seed" if row["n"] == 1 else "equal"
    low, high = row["ci95"]
    if low <= 0.0 <= high:
        return "no difference shown"
    return "better" if (low > 0.0) == statistics.higher_is_better(row["metric"]) else "worse"


def _sentence(row: Mapping[str, Any]) -> dict[str, str]:
    words = {"one seed": "one seed, no interval", "equal": "the same on every seed, no interval"}
    outcome = _outcome(row)
    return {
        "arm": row["arm"],
        "control": row["control"],
        "text": f"{_contrast_text(row)}: {words.get(outcome, outcome)}",
    }


def _contrast_text(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return f"n = {row['n']}, of which {row['not_finite']} without a number"
    unit = " points" if row["metric"] in FRACTIONS else ""
    text = f"{_signed(row['mean'], row['metric'])}{unit}"
    if row["ci95"] is not None:
        text += f", 95% CI {_interval(row, row['metric'])}, p {_p(row['p'])}"
    return f"{text}, n = {row['n']}"


def _contrast_cell(row: Mapping[str, Any] | None) -> dict[str, str]:
    if row is None or row["mean"] is None:
        return {"mean": ABSENT, "spread": ""}
    spread = "" if row["ci95"] is None else f"{_interval(row, row['metric'])}; p {_p(row['p'])}"
    return {"mean": _signed(row["mean"], row["metric"]), "spread": spread}


def _score(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None:
        return ABSENT
    if row["mean"] is None:
        return f"diverged in {row['not_finite']} of {row['n']}"
    sd = "" if row["sd"] is None else f" ± {_value(row['sd'], metric)}"
    return _value(row["mean"], metric) + sd


def _interval(row: Mapping[str, Any] | None, metric: str, *, signed: bool = True) -> str:
    if row is None or row["ci95"] is None:
        return ABSENT
    return " to ".join((_signed if signed else _value)(x, metric) for x in row["ci95"])


def _value(x: float, metric: str) -> str:
    text = f"{100 * x:.2f}" if metric in FRACTIONS else f"{x:.4f}"
    return text.replace("-", MINUS)


def _signed(x: float, metric: str) -> str:
    text = f"{100 * x:+.2f}" if metric in FRACTIONS else f"{x:+.4f}"
    return text.replace("-", MINUS)


def _percent(x: float | None) -> str:
    return ABSENT if x is None else f"{100 * x:.2f}"


def _p(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def _mean(values: Any) -> float | None:
    """The mean; None where a value is missing or not finite: a mean of the others misleads."""
    found = list(values)
    complete = all(isinstance(x, (int, float)) and math.isfinite(x) for x in found)
    return fmean(found) if found and complete else None


def _generations(runs: Sequence[Mapping[str, Any]]) -> str:
    total = sum(run.get("generations") or 0 for run in runs)
    return f"{sum(run.get('accepted') or 0 for run in runs)}/{total}" if total else ABSENT


def _runs_of(results: Mapping[str, Any], label: str) -> list[Mapping[str, Any]]:
    return [run for run in results["runs"] if run["arm"] == label]


def _find(rows: Sequence[dict[str, Any]], **keys: str) -> dict[str, Any] | None:
    return next((row for row in rows if keys.items() <= row.items()), None)


def _splits(splits: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Per seed, the size and hash of each part, in the order of PARTS."""
    table = []
    for seed, parts in splits.items():
        cells = [parts.get(p) if isinstance(parts, dict) else None for p in PARTS]
        shown = [c if isinstance(c, dict) else {} for c in cells]
        table.append(
            (seed, [(_plain(c.get("n", ABSENT)), str(c.get("sha256", ""))) for c in shown])
        )
    return table


def _stamp(environment: Mapping[str, Any]) -> str:
    """Hardware, date and versions in one line."""
    get = environment.get
    hardware = [str(get("cpu") or get("platform") or "unknown processor")]
    hardware += [f"{get(key)} {key}" for key in ("cores", "threads") if get(key) is not None]
    hardware += [f"device {get('device')}"] if get("device") else []
    versions = [f"{key} {get(key)}" for key in ("evostep", "torch", "python") if get(key)]
    commit = [f"commit {get('commit')}"] if get("commit") else []
    return "; ".join(filter(None, [", ".join(hardware), get("date"), ", ".join(versions + commit)]))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _markdown(text: object) -> str:
    """Text for a cell: what a label holds must not end the cell, or be read as markup."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>" else c for c in " ".join(str(text).split()))


def _render(name: str, context: Mapping[str, Any]) -> str:
    templates = resources.files("evostep.lab") / "templates"
    environment = Environment(
        loader=FunctionLoader(lambda file: (templates / file).read_text(encoding="utf-8")),
        autoescape=name.endswith(".html.j2"),  # labels come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = _markdown
    return environment.get_template(name).render(context)


def _replace(path: Path, content: bytes) -> None:
    """Write the whole file or nothing, so that a reader never sees half of one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)  # mkstemp's files are private
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
