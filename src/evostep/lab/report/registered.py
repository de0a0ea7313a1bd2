"""The registered contrast: one arm against every control that was written down beforehand.

"Beats the strongest control" means that it beats each of them with its whole interval above 0. The
p-value of that claim is the largest of theirs (an intersection-union test: Berger 1982,
https://doi.org/10.1080/00401706.1982.10487790); over several comparisons Holm corrects them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from evostep.errors import counted
from evostep.lab.report.statistics import Contrast, is_finite, paired_contrast, wilcoxon_p
from evostep.lab.report.wording import is_fraction, p_text, signed

By_seed = Mapping[int, float | None]


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return p-values that hold for all claims together: Holm 1979, a step-down Bonferroni.

    In ascending order the i-th of m (from 0) is multiplied by m - i, and none is smaller than the
    one before. A claim without a p-value counts among the m: it was made.

    Args:
        p_values: of each claim, by its name.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
        {'a': 0.04, 'b': 0.09, 'c': 0.09, 'd': None}
    """
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    least = 0.0
    for i, (p, name) in enumerate(known):
        least = max(least, min(1.0, p * (len(p_values) - i)))
        corrected[name] = least
    return corrected


def mean_over_sets(sets: Sequence[By_seed]) -> dict[int, float | None]:
    """Return one value for each seed that all data sets have: their mean, so that n stays honest.

    None where one of them has no number.

    Example:
        >>> mean_over_sets([{0: 0.5, 1: 0.25}, {0: 1.0, 1: None}, {0: 0.0, 2: 1.0, 1: 0.5}])
        {0: 0.5, 1: None}
    """
    seeds = [seed for seed in sets[0] if all(seed in values for values in sets)] if sets else []
    found: dict[int, float | None] = {}
    for seed in seeds:
        values = [v for one in sets if (v := one[seed]) is not None]
        found[seed] = fmean(values) if len(values) == len(sets) else None
    return found


def against_all(arm: By_seed, controls: Mapping[str, By_seed], seeds: Sequence[int]) -> Any:
    """Return what the runs say of an arm against every one of its controls.

    Args:
        arm: seed -> value, more is better; None where the run diverged.
        controls: label -> the same of each control.
        seeds: that were registered.

    Returns:
        ``{"n", "pairs", "outcome", "beats", "p", "p_wilcoxon", "against"}``. `outcome` is
        "better", "worse" or "no difference shown" where all controls agree; "mixed" where the arm
        is worse than some; "diverged" where a run has no number; "unfinished" where runs are
        missing; "no interval" where a spread is. `p` and `p_wilcoxon` are the largest over the
        controls, two-sided; 1 where the arm's mean is not above a control's, which no p-value for
        a difference makes evidence of a gain. `against` has a row for each control.
    """
    rows = []
    for label, control in controls.items():
        pairs = [(arm[s], control[s]) for s in seeds if s in arm and s in control]
        finite = [(a, c) for a, c in pairs if a is not None and c is not None]
        row: dict[str, Any] = {"control": label, "n": len(pairs), "mean": None, "ci95": None}
        row |= {"p": None, "p_wilcoxon": None}
        if finite:
            ours, theirs = ([pair[i] for pair in finite] for i in (0, 1))
            row |= _tested(paired_contrast(ours, theirs), wilcoxon_p(ours, theirs))
        if len(finite) < len(pairs):
            row["not_finite"] = len(pairs) - len(finite)
        rows.append(row | {"outcome": _outcome(row, len(seeds))})
    outcomes = {row["outcome"] for row in rows}
    return {
        "n": len(seeds),
        "pairs": min(row["n"] for row in rows),
        "outcome": _together(outcomes),
        "beats": outcomes == {"better"},
        "p": _largest(rows, "p"),
        "p_wilcoxon": _largest(rows, "p_wilcoxon"),
        "against": rows,
    }


def _tested(contrast: Contrast, p_wilcoxon: float | None) -> dict[str, Any]:
    interval = None if contrast.ci95 is None else list(contrast.ci95)
    return {"mean": contrast.mean, "ci95": interval, "p": contrast.p, "p_wilcoxon": p_wilcoxon}


def _outcome(row: Mapping[str, Any], seeds: int) -> str:
    if row.get("not_finite"):  # what is left may be a choice of the luckiest seeds
        return "diverged"
    if row["n"] < seeds:
        return "unfinished"
    if row["ci95"] is None:
        return "no interval"
    low, high = row["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def _together(outcomes: set[str]) -> str:
    for hindrance in ("diverged", "unfinished", "no interval"):
        if hindrance in outcomes:
            return hindrance
    if len(outcomes) == 1:
        return next(iter(outcomes))
    return "mixed" if "worse" in outcomes else "no difference shown"


def _largest(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [1.0 if row["mean"] is not None and row["mean"] <= 0 else row[name] for row in rows]
    known = [p for p in values if p is not None]
    return max(known) if len(known) == len(values) else None


def registered_result(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the registered contrast of a comparison and what its runs say; None: none was."""
    contrast = results.get("config", {}).get("contrast")
    if not contrast:
        return None
    metric, seeds = contrast["metric"], contrast["seeds"]

    def values(label: str) -> dict[int, float | None]:
        found = {r["seed"]: r["test"].get(metric) for r in results["runs"] if r["arm"] == label}
        return {seed: value if is_finite(value) else None for seed, value in found.items()}

    controls = {label: values(label) for label in contrast["controls"]}
    found = against_all(values(contrast["arm"]), controls, seeds)
    return {**contrast, **found, "registered": True}


def registered_verdict(results: Mapping[str, Any]) -> str | None:
    """Return the registered contrast in one sentence, better and worse alike; None: none was."""
    found = registered_result(results)
    if found is None:
        return None
    arm, rows, metric = found["arm"], found["against"], found["metric"]
    if found["outcome"] == "unfinished":
        return (
            f"Registered, and not yet decided: {arm} and its controls have {found['pairs']} of "
            f"{counted(found['n'], 'pair')} of runs."
        )
    parts = []
    for outcome, words in _WORDS.items():
        group = [row for row in rows if row["outcome"] == outcome]
        if group:
            listed = " and ".join(f"{row['control']}{_by(row, outcome, metric)}" for row in group)
            parts.append(f"{words} {listed}")
    decided = "so it beats" if found["beats"] else "so it does not beat"
    if found["outcome"] in ("diverged", "no interval"):
        decided = "so nothing is shown about"
    numbers = [f"n = {found['pairs']}"]
    if found["p"] is not None:
        numbers.insert(0, f"p {p_text(found['p'])}")
    return (
        f"Registered: in test {metric} {arm} {', '.join(parts)}, {decided} the strongest control "
        f"({', '.join(numbers)})."
    )


_WORDS = {
    "better": "is better than",
    "worse": "is worse than",
    "no difference shown": "shows no difference from",
    "diverged": "has no verdict, since a run diverged, against",
    "no interval": "has no interval against",
}


def _by(row: Mapping[str, Any], outcome: str, metric: str) -> str:
    """Return by how much: the sign is in the words where they say better or worse."""
    if outcome in ("diverged", "no interval"):
        return ""
    ends = [row["mean"], *row["ci95"]]
    unit = " points" if is_fraction(metric) else ""
    if outcome == "no difference shown":
        mean, low, high = (signed(x, metric) for x in ends)
        return f" ({mean}{unit}, 95% CI {low} to {high})"
    mean, low, high = (signed(abs(x), metric).lstrip("+") for x in ends)
    if outcome == "worse":
        low, high = high, low
    return f" by {mean}{unit} (95% CI {low} to {high})"
