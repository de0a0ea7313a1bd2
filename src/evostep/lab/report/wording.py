"""How results are put into words: the verdict, and numbers as text.

Metrics in [0, 1] are shown as percent with two decimals, their differences in (percentage) points;
other metrics with four decimals in their own unit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evostep.lab.report import contrasts

FRACTIONS = ("accuracy", "balanced-accuracy", "macro-f1")
"""Metrics in [0, 1], shown as percent; their differences in (percentage) points."""

MINUS = "\N{MINUS SIGN}"
ABSENT = "–"

OUTCOMES = {
    "better": "Better: ",
    "no difference shown": "No difference shown: ",
    "worse": "Worse: ",
    "one seed": "One seed, so a difference cannot be told from luck: ",
    "equal": "The same difference on every seed, so no interval: ",
    "diverged": "No number, since a run diverged: ",
}


def verdict(
    results: Mapping[str, Any], metric: str, controls: Sequence[str], strongest: str | None
) -> dict[str, Any]:
    """Return whether arms beat the strongest control, which is the only one that counts here.

    Args:
        results: with "contrasts" filled by `contrasts.finish`.
        metric: the test metric that decides.
        controls: labels of the controls.
        strongest: the label of one of them, or None where none has finished.

    Returns:
        `headline`, one or two plain sentences, and `details`, a sentence for each outcome.
    """
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
        groups.setdefault(_outcome(row), []).append(f"{row['arm']} ({_contrast_text(row)})")
    details = [
        start + "; ".join(groups[key]) + "." for key, start in OUTCOMES.items() if key in groups
    ]
    of = f"the strongest control, {strongest}, in test {metric}"
    return {"headline": _headline(rows, of), "details": details}


def _headline(rows: Sequence[Mapping[str, Any]], of: str) -> str:
    if all(row["ci95"] is None for row in rows):
        one_seed = rows[0]["n"] == 1
        why = "one seed cannot tell a difference" if one_seed else "no interval for the difference"
        return f"No verdict: {why} from {of}."
    better = [row["arm"] for row in rows if _outcome(row) == "better"]
    if not better and len(rows) == 1:
        return f"The arm was not shown to beat {of}."
    if not better:
        return f"None of the {len(rows)} arms was shown to beat {of}."
    headline = f"{_listed(better)} beat{'s' if len(better) == 1 else ''} {of}."
    if len(better) < len(rows):
        headline += f" That is {len(better)} of {len(rows)} arms."
    return headline


def _outcome(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "diverged"
    if row["ci95"] is None:
        return "one seed" if row["n"] == 1 else "equal"
    low, high = row["ci95"]
    if low <= 0.0 <= high:
        return "no difference shown"
    return "better" if (low > 0.0) == contrasts.higher_is_better(row["metric"]) else "worse"


def sentence(row: Mapping[str, Any]) -> dict[str, str]:
    """Word a row of "contrasts": its arm, its control, and the difference in words."""
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
    text = f"{signed(row['mean'], row['metric'])}{unit}"
    if row["ci95"] is not None:
        text += f", 95% CI {_signed_interval(row)}, p {_p(row['p'])}"
    return f"{text}, n = {row['n']}"


def contrast_cell(row: Mapping[str, Any] | None) -> dict[str, str]:
    """Word a row of "contrasts" for a table: the mean, and its interval and p (or nothing)."""
    if row is None or row["mean"] is None:
        return {"mean": ABSENT, "spread": ""}
    spread = "" if row["ci95"] is None else f"{_signed_interval(row)}; p {_p(row['p'])}"
    return {"mean": signed(row["mean"], row["metric"]), "spread": spread}


def score(row: Mapping[str, Any] | None, metric: str) -> str:
    """Word mean and standard deviation of a row of "arms"."""
    if row is None:
        return ABSENT
    if row["mean"] is None:
        return f"diverged in {row['not_finite']} of {row['n']}"
    sd = "" if row["sd"] is None else f" ± {_value(row['sd'], metric)}"
    return _value(row["mean"], metric) + sd


def interval(row: Mapping[str, Any] | None, metric: str) -> str:
    """Word the 95% interval of a row of "arms"."""
    if row is None or row["ci95"] is None:
        return ABSENT
    return " to ".join(_value(x, metric) for x in row["ci95"])


def _signed_interval(row: Mapping[str, Any]) -> str:
    return " to ".join(signed(x, row["metric"]) for x in row["ci95"])


def _value(x: float, metric: str) -> str:
    text = f"{100 * x:.2f}" if metric in FRACTIONS else f"{x:.4f}"
    return text.replace("-", MINUS)


def signed(x: float, metric: str) -> str:
    """Word a difference in a metric.

    >>> signed(-0.0312, "accuracy"), signed(0.5, "neg-loss")
    ('−3.12', '+0.5000')
    """
    text = f"{100 * x:+.2f}" if metric in FRACTIONS else f"{x:+.4f}"
    return text.replace("-", MINUS)


def percent(x: float | None) -> str:
    """Word a fraction as percent."""
    return ABSENT if x is None else f"{100 * x:.2f}"


def _p(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def generations(runs: Sequence[Mapping[str, Any]]) -> str:
    """Word how many generations were accepted, of all."""
    total = sum(run.get("generations") or 0 for run in runs)
    return f"{sum(run.get('accepted') or 0 for run in runs)}/{total}" if total else ABSENT


def stamp(environment: Mapping[str, Any]) -> str:
    """Word hardware, date and versions in one line."""
    get = environment.get
    hardware = [str(get("cpu") or get("platform") or "unknown processor")]
    for one in ("core", "thread"):
        if (n := get(f"{one}s")) is not None:
            hardware.append(f"{n} {one}" if n == 1 else f"{n} {one}s")
    hardware += [f"device {get('device')}"] if get("device") else []
    versions = [f"{key} {get(key)}" for key in ("evostep", "torch", "python") if get(key)]
    commit = [f"commit {get('commit')}"] if get("commit") else []
    return "; ".join(filter(None, [", ".join(hardware), get("date"), ", ".join(versions + commit)]))


def plain(value: Any) -> str:
    """Word a value of the configuration."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def minutes(seconds: float | None) -> str:
    """Word a time in minutes.

    >>> minutes(900), minutes(3)
    ('15.0', '0.05')
    """
    if seconds is None:
        return ABSENT
    return f"{seconds / 60:.1f}" if seconds >= 60 else f"{seconds / 60:.2f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def markdown(text: object) -> str:
    """Escape text for a cell: a label must not end the cell, or be read as markup."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>" else c for c in " ".join(str(text).split()))
