"""Summary of polish_arena.py: paired differences, and what polish said beside the test set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from evostep.lab.report.registered import holm
from evostep.lab.report.statistics import paired_contrast
from evostep.polishing.result import BY_START, IMPROVED, NO_GAIN

PRIMARY = "worst-class-recall"
LOWER_IS_BETTER = {"cost"}
# the first five are the family that Holm's correction is over
CONTROLS = (
    *("checkpoint", "logit adjustment", "tuned adjustment"),
    *("coordinate search", "Adam, soft form"),
)
POINTS = {"cost": 1.0}  # others are told in points, hundredths

Run = Mapping[str, Any]


def summarise(arena: str, runs: Sequence[Run]) -> tuple[dict[str, Any], str]:
    """Return results as plain values, and a table of them in Markdown.

    On images each network has its own pairs, one a seed; on tables a pair is a data set, the mean
    over its seeds.

    Args:
        arena: ``"fashion"`` or ``"tables"``.
        runs: what polish_arena.py wrote, a line each.
    """
    names = list(dict.fromkeys(run["unit"] for run in runs))
    pairs = (
        {name: [[run] for run in runs if run["unit"] == name] for name in names}
        if arena == "fashion"
        else {"all sets": [[run for run in runs if run["unit"] == name] for name in names]}
    )
    contrasts = [
        _contrast(group, metric, control, of_group)
        for metric in (runs[0]["metrics"] if runs else ())
        for group, of_group in pairs.items()
        for control in _arms(of_group[0][0], metric)
        if control != "polish"
    ]
    family = [row for row in contrasts if row["metric"] == PRIMARY and row["control"] in CONTROLS]
    p_values = {str(i): row["wilcoxon_p"] for i, row in enumerate(family)}
    for row, p in zip(family, holm(p_values).values(), strict=True):
        row["holm_p"] = p
    results = {
        "runs": len(runs),
        "means": {
            name: {
                metric: {
                    arm: _mean([run for run in runs if run["unit"] == name], metric, arm)
                    for arm in _arms(next(run for run in runs if run["unit"] == name), metric)
                }
                for metric in runs[0]["metrics"]
            }
            for name in names
        },
        "contrasts": contrasts,
        "claims": [
            _claims(name, metric, [run for run in runs if run["unit"] == name])
            for metric in (runs[0]["metrics"] if runs else ())
            for name in names
        ],
    }
    return results, _table(results)


def wilcoxon(differences: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed ranks, zeros by Pratt; 1 where all are zero.

    Example:
        >>> wilcoxon([0.0, 0.0]), wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0])
        (1.0, 0.0625)
    """
    from scipy import stats

    if not any(differences):
        return 1.0
    with warnings.catch_warnings():  # few pairs: then p is large anyway
        warnings.simplefilter("ignore")
        return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def _arms(run: Run, metric: str) -> list[str]:
    return list(run["metrics"][metric]["arms"])


def _mean(runs: Sequence[Run], metric: str, arm: str) -> float:
    return fmean(run["metrics"][metric]["arms"][arm] for run in runs)


def _contrast(
    group: str, metric: str, control: str, pairs: Sequence[Sequence[Run]]
) -> dict[str, Any]:
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    ours = [sign * _mean(runs, metric, "polish") for runs in pairs]
    theirs = [sign * _mean(runs, metric, control) for runs in pairs]
    differences = [round(a - b, 12) for a, b in zip(ours, theirs, strict=True)]
    found = paired_contrast(ours, theirs)
    return {
        "group": group,
        "metric": metric,
        "control": control,
        "n": found.n,
        "gain": found.mean,
        "ci95": found.ci95,
        "better": sum(d > 0 for d in differences),
        "worse": sum(d < 0 for d in differences),
        "wilcoxon_p": wilcoxon(differences),
    }


def _claims(name: str, metric: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what polishing said about itself, beside what the test set shows."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    said = [run["metrics"][metric] for run in runs]
    true = [sign * (one["arms"]["polish"] - one["arms"]["checkpoint"]) for one in said]
    confirmed = [(one, t) for one, t in zip(said, true, strict=True) if one["verdict"] != NO_GAIN]
    return {
        "unit": name,
        "metric": metric,
        "n": len(runs),
        **{verdict: sum(one["verdict"] == verdict for one in said) for verdict in _VERDICTS},
        "evolution was chosen": sum(one["chosen"].startswith("evolution") for one in said),
        "confirmed, and better on the test set": sum(t > 0 for _, t in confirmed),
        "interval holds the test set's gain": sum(
            one["gain"]["low"] <= t <= one["gain"]["high"]
            for one, t in zip(said, true, strict=True)
        ),
        "mean gain told": fmean(one["gain"]["value"] for one in said),
        "mean gain on the test set": fmean(true),
    }


_VERDICTS = (IMPROVED, BY_START, NO_GAIN)


def _table(results: Mapping[str, Any]) -> str:
    lines = [
        f"{results['runs']} runs. Gains of polish, in points (cost: as it is), positive: better."
    ]
    lines += ["", "| | control | metric | n | gain | 95% interval | better, worse | p | p, Holm |"]
    lines += ["|:--|:--|:--|--:|--:|:--|--:|--:|--:|"]
    for row in results["contrasts"]:
        points = POINTS.get(row["metric"], 100.0)
        ends = row["ci95"]
        interval = f"{points * ends[0]:+.2f} to {points * ends[1]:+.2f}" if ends else ""
        lines.append(
            f"| {row['group']} | {row['control']} | {row['metric']} | {row['n']} | "
            f"{points * row['gain']:+.2f} | {interval} | {row['better']}, {row['worse']} | "
            f"{row['wilcoxon_p']:.2g} | {format(row['holm_p'], '.2g') if 'holm_p' in row else ''} |"
        )
    lines += ["", "Values on the test set, means over seeds."]
    for metric in next(iter(results["means"].values()), {}):
        points = POINTS.get(metric, 100.0)
        arms = list(next(iter(results["means"].values()))[metric])
        lines += ["", f"| {metric} | " + " | ".join(arms) + " |", "|:--|" + "--:|" * len(arms)]
        lines += [
            f"| {name} | " + " | ".join(f"{points * of[metric][arm]:.2f}" for arm in arms) + " |"
            for name, of in results["means"].items()
        ]
    lines += ["", "What polishing said beside what the test set shows."]
    lines += [
        "",
        "| | metric | n | improved | by the start | no confirmed gain | evolution chosen |",
    ]
    lines[-1] += " confirmed, better on the test set | interval holds the gain | told | test |"
    lines += ["|:--|:--|" + "--:|" * 9]
    for row in results["claims"]:
        points = POINTS.get(row["metric"], 100.0)
        numbers = [row["n"], *(row[verdict] for verdict in _VERDICTS), row["evolution was chosen"]]
        numbers += [row["confirmed, and better on the test set"]]
        numbers += [row["interval holds the test set's gain"]]
        told = [row["mean gain told"], row["mean gain on the test set"]]
        cells = [str(number) for number in numbers] + [f"{points * one:+.2f}" for one in told]
        lines.append(f"| {row['unit']} | {row['metric']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
