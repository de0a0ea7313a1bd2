"""Numbers of the results as text.

Metrics in [0, 1] are shown as percent with two decimals, their differences in (percentage) points;
other metrics with four decimals in their own unit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evostep.errors import InputError, counted
from evostep.scoring.metrics import find_metric

MINUS = "\N{MINUS SIGN}"
ABSENT = "–"


def is_fraction(metric: str) -> bool:
    """Return whether a metric lies in [0, 1], and is shown as percent, its differences in points.

    >>> is_fraction("macro-f1"), is_fraction("neg-loss")
    (True, False)
    """
    try:
        return find_metric(metric).fraction
    except InputError:  # a user's own, or one that needs more than its name
        return False


def contrast_text(row: Mapping[str, Any]) -> str:
    """Return a row of "contrasts" in words: the difference, its interval, Holm's p and n."""
    diverged = ""
    if row.get("not_finite"):
        whose = {"both": "arm or control"}.get(row["diverged"], row["diverged"])
        diverged = f", {whose} diverged on {row['not_finite']} of {_seeds(row)}"
    if row["mean"] is None:
        return f"n = {row['n']}{diverged}"
    unit = " points" if is_fraction(row["metric"]) else ""
    text = f"{signed(row['mean'], row['metric'])}{unit}"
    if row["ci95"] is not None:
        text += f", 95% CI {_signed_interval(row)}, p {p_text(row['p_holm'])}"
    return f"{text}, n = {row['n']}{diverged}"


def contrast_cell(row: Mapping[str, Any] | None) -> dict[str, str]:
    """Return a row of "contrasts" for a table: the mean, its interval and Holm's p (or nothing).

    Where runs diverged it says of how many seeds these are.
    """
    if row is None or row["mean"] is None:
        return {"mean": ABSENT, "spread": ""}
    spread = [] if row["ci95"] is None else [_signed_interval(row), f"p {p_text(row['p_holm'])}"]
    spread += [f"on {row['n']} of {_seeds(row)}"] if row.get("not_finite") else []
    return {"mean": signed(row["mean"], row["metric"]), "spread": "; ".join(spread)}


def score(row: Mapping[str, Any] | None, metric: str) -> str:
    """Return mean and standard deviation of a row of "arms" as text, and how many diverged."""
    if row is None:
        return ABSENT
    if row["mean"] is None:
        return f"diverged in {row['not_finite']} of {row['not_finite']}"
    sd = "" if row["sd"] is None else f" ± {_value(row['sd'], metric)}"
    lost = row.get("not_finite", 0)
    diverged = f" ({lost} of {row['n'] + lost} diverged)" if lost else ""
    return _value(row["mean"], metric) + sd + diverged


def interval(row: Mapping[str, Any] | None, metric: str) -> str:
    """Return the 95% interval of a row of "arms" as text."""
    if row is None or row["ci95"] is None:
        return ABSENT
    return " to ".join(_value(x, metric) for x in row["ci95"])


def _seeds(row: Mapping[str, Any]) -> str:
    """Return of how many seeds a row is, those with a diverged run included."""
    return counted(row["n"] + row["not_finite"], "seed")


def _signed_interval(row: Mapping[str, Any]) -> str:
    return " to ".join(signed(x, row["metric"]) for x in row["ci95"])


def _value(x: float, metric: str) -> str:
    text = f"{100 * x:.2f}" if is_fraction(metric) else f"{x:.4f}"
    return text.replace("-", MINUS)


def signed(x: float, metric: str) -> str:
    """Return a difference in a metric as text, with its sign.

    >>> signed(-0.0312, "accuracy"), signed(0.5, "neg-loss")
    ('−3.12', '+0.5000')
    """
    text = f"{100 * x:+.2f}" if is_fraction(metric) else f"{x:+.4f}"
    return text.replace("-", MINUS)


def size(x: float, metric: str) -> str:
    """Return the size of a difference as text, without sign, with its unit if it has one.

    >>> size(-0.0312, "accuracy"), size(0.5, "neg-loss")
    ('3.12 points', '0.5000')
    """
    return signed(abs(x), metric).lstrip("+") + (" points" if is_fraction(metric) else "")


def percent(x: float | None) -> str:
    """Return a fraction as percent."""
    return ABSENT if x is None else f"{100 * x:.2f}"


def p_text(p: float) -> str:
    """Return a p-value with its sign of relation."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def generations(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return how many generations were accepted, of all, as text."""
    total = sum(run.get("generations") or 0 for run in runs)
    return f"{sum(run.get('accepted') or 0 for run in runs)}/{total}" if total else ABSENT


def stamp(environment: Mapping[str, Any]) -> str:
    """Return hardware, date and versions in one line."""
    get = environment.get
    hardware = [str(get("cpu") or get("platform") or "unknown processor")]
    for one in ("core", "thread"):
        if (n := get(f"{one}s")) is not None:
            hardware.append(f"{n} {one}" if n == 1 else f"{n} {one}s")
    hardware += [f"device {get('device')}"] if get("device") else []
    versions = [f"{key} {get(key)}" for key in ("evostep", "torch", "python") if get(key)]
    commit = [f"commit {get('commit')}"] if get("commit") else []
    date = str(get("date") or "")  # of a file that may hold anything
    return "; ".join(filter(None, [", ".join(hardware), date, ", ".join(versions + commit)]))


def plain(value: Any) -> str:
    """Return a value of the configuration as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def minutes(seconds: float | None) -> str:
    """Return a time in minutes as text.

    >>> minutes(900), minutes(3)
    ('15.0', '0.05')
    """
    if seconds is None:
        return ABSENT
    return f"{seconds / 60:.1f}" if seconds >= 60 else f"{seconds / 60:.2f}"


def duration(seconds: float) -> str:
    """Return a time as text, in the unit that suits it.

    >>> duration(0.04), duration(100), duration(5400)
    ('0.0 s', '1.7 min', '1.5 h')
    """
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def forwards(n: int) -> str:
    """Return sample-forwards as text.

    >>> forwards(1), forwards(5400), forwards(1_234_567)
    ('1 sample-forward', '5,400 sample-forwards', '1.235 M sample-forwards')
    """
    return counted(n, "sample-forward") if n < 10**6 else f"{n / 1e6:.3f} M sample-forwards"


def of_budget(budget: int, they_spent: str, least: int, most: int) -> str:
    """Return how much of a common budget runs spend, which end with a whole step.

    >>> of_budget(1_000_000, "they spend", 1_000_000, 1_040_000)
    'Runs end with the step or generation (a population: the epoch) that reaches the budget of \
1.000 M sample-forwards: they spend 1.00 to 1.04 times as much.'
    """
    times = dict.fromkeys(f"{n / budget:.2f}" for n in (least, most))
    return (
        "Runs end with the step or generation (a population: the epoch) that reaches the budget of "
        f"{forwards(budget)}: {they_spent} {' to '.join(times)} times as much."
    )


def markdown(text: object) -> str:
    """Return text escaped for a cell: a label must not end the cell, or be read as markup."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>" else c for c in " ".join(str(text).split()))
