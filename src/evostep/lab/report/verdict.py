"""The verdict: which arms beat the strongest control, the only one that counts, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evostep.lab.report import contrasts
from evostep.lab.report.statistics import seeds_to_show
from evostep.lab.report.wording import contrast_text, is_fraction, signed, size

LEVEL = 0.05  # of corrected p-values
OUTCOMES = {
    "better": "Better: ",
    "worse": "Worse: ",
    "no difference shown": "Undecided, for no difference is shown: ",
    "one seed": "One seed, so a difference cannot be told from luck: ",
    "equal": "The same difference on every seed, so no interval: ",
    "diverged": "No verdict, since the arm diverged: ",
    "control diverged": "No verdict, since the control diverged: ",
    "both diverged": "No verdict, since both arm and control diverged: ",
}
_OF_DIVERGED = {"arm": "diverged", "control": "control diverged", "both": "both diverged"}


def verdict(
    results: Mapping[str, Any], metric: str, controls: Sequence[str], strongest: str | None
) -> dict[str, Any]:
    """Return in words whether arms beat the strongest control.

    Args:
        results: with "contrasts" filled by `contrasts.with_statistics`.
        metric: the test metric that decides.
        controls: labels of the controls.
        strongest: the label of one of them, or None where none has finished.

    Returns:
        `headline`, one plain sentence that says better and worse, and `details`, a sentence for
        each outcome.
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
        told = f"{row['arm']} ({contrast_text(row)}{_seeds(row)})"
        groups.setdefault(outcome_of(row), []).append(told)
    details = [
        start + "; ".join(groups[key]) + "." for key, start in OUTCOMES.items() if key in groups
    ]
    which = "strongest control" if len(controls) > 1 else "control"
    of = f"the {which}, {strongest}, in test {metric}"
    return {"headline": _headline(rows, of), "details": details}


def _seeds(row: Mapping[str, Any]) -> str:
    """Return how many seeds would show the difference that was measured, where it is not shown."""
    if outcome_of(row) != "no difference shown":
        return ""
    needed = seeds_to_show(row["mean"], row["ci95"], row["n"])
    if needed is None or needed <= row["n"]:
        return ""
    return f"; about {needed:,} seeds would show it" if needed < 10_000 else "; next to nothing"


def _headline(rows: Sequence[Mapping[str, Any]], of: str) -> str:
    outcomes = [outcome_of(row) for row in rows]
    if all(row.get("not_finite") for row in rows):
        who = "runs of every other arm" if set(outcomes) == {"diverged"} else "runs of it"
        if "diverged" in outcomes and len(set(outcomes)) > 1:
            who = "runs of it or of the arms"
        return f"No verdict against {of}: {who} diverged."
    if all(row["ci95"] is None for row in rows):
        one_seed = "one seed" in outcomes
        why = "one seed cannot tell a difference" if one_seed else "no interval for the difference"
        return f"No verdict: {why} from {of}."
    groups = {
        outcome: [row for row in rows if outcome_of(row) == outcome]
        for outcome in OUTCOMES
        if outcome in outcomes
    }
    better = groups.pop("better", [])
    others = "; ".join(_told(group, outcome, len(rows)) for outcome, group in groups.items())
    if better:
        verb = "beat" if len(better) > 1 else "beats"
        beaten = f"{_named(better)} {verb} {of}, by {_sizes(better)}"
        return f"{beaten}; {others}." if others else f"{beaten}."
    who = f"None of the {len(rows)} arms is" if len(rows) > 1 else f"{rows[0]['arm']} is not"
    return f"{who} shown to beat {of}: {others}."


def _told(group: Sequence[Mapping[str, Any]], outcome: str, arms: int) -> str:
    """Return what one outcome is, of which arms, in a clause."""
    who = "it" if arms == 1 else _named(group)
    if len(group) == arms > 1:
        who = "both" if arms == 2 else f"all {arms}"
    one = len(group) == 1
    if outcome == "worse":
        return f"{who} {'is' if one else 'are'} worse, by {_sizes(group)}"
    if outcome == "no difference shown":
        if one:
            low, high = (signed(end, group[0]["metric"]) for end in group[0]["ci95"])
            unit = " points" if is_fraction(group[0]["metric"]) else ""
            return f"{who} is undecided, anything from {low} to {high}{unit}"
        return f"{who} are undecided"
    if outcome in ("one seed", "equal"):
        return f"{who} {'has' if one else 'have'} no interval"
    return f"{who} {'has' if one else 'have'} no verdict, since runs diverged"


def _named(group: Sequence[Mapping[str, Any]]) -> str:
    """Return which arms: by name where these are few."""
    return _listed([row["arm"] for row in group]) if len(group) <= 3 else f"{len(group)} arms"


def _sizes(group: Sequence[Mapping[str, Any]]) -> str:
    """Return by how much arms differ: from the smallest to the largest of the means."""
    means, metric = sorted(abs(row["mean"]) for row in group), group[0]["metric"]
    ends = dict.fromkeys(size(x, metric) for x in (means[0], means[-1]))
    first, *last = ends
    return f"{first.removesuffix(' points')} to {last[0]}" if last else first


def outcome_of(row: Mapping[str, Any]) -> str:
    """Return what a row of "contrasts" shows: a key of `OUTCOMES`.

    A difference is shown where p, corrected for the number of arms, is below 0.05.
    """
    if row.get("not_finite"):  # what is left may be a choice of the luckiest seeds
        return _OF_DIVERGED[row["diverged"]]
    if row["ci95"] is None:
        return "one seed" if row["n"] == 1 else "equal"
    low, high = row["ci95"]
    if low <= 0.0 <= high or row["p_holm"] >= LEVEL:
        return "no difference shown"
    return "better" if (low > 0.0) == contrasts.higher_is_better(row["metric"]) else "worse"


def sentence(row: Mapping[str, Any]) -> dict[str, str]:
    """Return arm and control of a row of "contrasts", and the difference in words."""
    words = {"one seed": "one seed, no interval", "equal": "the same on every seed, no interval"}
    words |= dict.fromkeys(_OF_DIVERGED.values(), "no verdict")
    outcome = outcome_of(row)
    return {
        "arm": row["arm"],
        "control": row["control"],
        "text": f"{contrast_text(row)}: {words.get(outcome, outcome)}",
    }


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
