"""Tables over seeds: every arm's mean, and its paired contrast with every control.

Arms of a comparison share their seeds (splits, initial weights, trunk), so arms are compared by the
differences within seeds: the spread between seeds, often larger than any effect, cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from evostep.lab.arms.methods import METHODS
from evostep.lab.report.registered import holm, registered_result
from evostep.lab.report.statistics import is_finite, paired_contrast, summarise
from evostep.scoring.metrics import is_to_be_large


def arm_table(runs: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return one row per arm: its test values of `metric`, summarised over seeds.

    Args:
        runs: records with "arm", "seed" and "test" (a mapping from metric to value); runs without
            the metric are left out.
        metric: a key of "test".

    Returns:
        Rows {"arm", "n", "metric", "mean", "sd", "ci95"} in the order of first appearance. Runs
        that diverged (a value that is null or not finite) are left out of the numbers, which are
        None where all did, and of "n"; "not_finite" counts them: without its failures an arm looks
        better than it is.

    Raises:
        ValueError: one arm and seed twice.
    """
    rows: list[dict[str, Any]] = []
    for arm, values in _by_arm(runs, metric).items():
        finite = [value for value in values.values() if value is not None]
        row: dict[str, Any] = {"arm": arm, "n": len(finite), "metric": metric}
        if finite:
            summary = summarise(finite)
            row |= {"mean": summary.mean, "sd": summary.sd, "ci95": _as_list(summary.ci95)}
        else:
            row |= {"mean": None, "sd": None, "ci95": None}
        if len(finite) < len(values):
            row["not_finite"] = len(values) - len(finite)
        rows.append(row)
    return rows


def contrast_table(
    runs: Sequence[Mapping[str, Any]], metrics: str | Iterable[str], controls: Sequence[str]
) -> list[dict[str, Any]]:
    """Return paired contrasts of every arm against every control, on the seeds that both have.

    Controls are compared with the controls before them (sgd-all with sgd, never both ways).

    Args:
        runs: as in `arm_table`.
        metrics: one metric or several, keys of "test".
        controls: labels of the control arms, plainest first; absent ones are passed over.

    Returns:
        Rows {"arm", "control", "metric", "n", "mean", "ci95", "p", "p_holm"}; "mean" is arm -
        control; "p_holm" is corrected for the number of arms against that control in that metric,
        None where "p" is. A pair without a common seed has no row. Pairs with a diverged run are
        left out of the numbers, which are None where all are such, and of "n"; "not_finite" counts
        them, and "diverged" says whose runs these were: "arm", "control", or "both".

    Raises:
        ValueError: one arm and seed twice.
    """
    rows: list[dict[str, Any]] = []
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        by_arm = _by_arm(runs, metric)
        present = [label for label in controls if label in by_arm]
        for position, control in enumerate(present):
            settled = present[: position + 1]
            found = {
                arm: row
                for arm in by_arm
                if arm not in settled
                and (row := _contrast_row(by_arm[arm], by_arm[control])) is not None
            }
            corrected = holm({arm: row["p"] for arm, row in found.items()})
            rows += [
                {"arm": arm, "control": control, "metric": metric, **row, "p_holm": corrected[arm]}
                for arm, row in found.items()
            ]
    return rows


def paired_differences(
    runs: Sequence[Mapping[str, Any]], metric: str, arm: str, control: str
) -> dict[int, float]:
    """Return arm - control for each seed that both have with a finite number.

    Example:
        >>> runs = [{"arm": "a", "seed": 0, "test": {"m": 0.75}}]
        >>> paired_differences([*runs, {"arm": "b", "seed": 0, "test": {"m": 0.5}}], "m", "a", "b")
        {0: 0.25}
    """
    by_arm = _by_arm(runs, metric)
    ours, theirs = by_arm.get(arm, {}), by_arm.get(control, {})
    pairs = {seed: (value, theirs[seed]) for seed, value in ours.items() if seed in theirs}
    return {s: a - c for s, (a, c) in pairs.items() if a is not None and c is not None}


def strongest_control(
    runs: Sequence[Mapping[str, Any]], metric: str, controls: Sequence[str], *, higher: bool = True
) -> str | None:
    """Return the control with the best mean test value, over the seeds that all controls share.

    A control with a diverged run ranks last. Without a common seed each has its own mean. None
    when no control has finished.
    """
    by_arm = _by_arm(runs, metric)
    present = [label for label in controls if label in by_arm]
    shared = set.intersection(*(set(by_arm[label]) for label in present)) if present else set()

    def strength(label: str) -> float:
        values = [by_arm[label][seed] for seed in shared or by_arm[label]]
        finite = [value for value in values if value is not None]
        if len(finite) < len(values):
            return -math.inf
        return fmean(finite) if higher else -fmean(finite)

    return max(present, key=strength, default=None)


def with_statistics(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `results` with "arms" and "contrasts" computed from its runs.

    Rows for accuracy, loss and the metric of the configuration, where the runs have them. Arms
    come in the order of the configuration. The input is not changed.

    Raises:
        ValueError: one arm and seed twice.
    """
    order = {label: position for position, label in enumerate(arm_labels(results))}
    runs = sorted(results["runs"], key=lambda run: order[run["arm"]])
    wanted = dict.fromkeys(["accuracy", "loss", main_metric(results)])
    metrics = [name for name in wanted if any(name in run["test"] for run in runs)]
    found = dict(results) | {
        "arms": [row for metric in metrics for row in arm_table(runs, metric)],
        "contrasts": contrast_table(runs, metrics, control_labels(results)),
    }
    if (registered := registered_result(results)) is not None:
        found["registered"] = registered
        for row in found["contrasts"]:
            if _is_registered(row, registered):
                row["registered"] = True
    return found


def _is_registered(row: Mapping[str, Any], registered: Mapping[str, Any]) -> bool:
    same = all(row[key] == registered[key] for key in ("arm", "metric"))
    return same and row["control"] in registered["controls"]


def arm_labels(results: Mapping[str, Any]) -> list[str]:
    """Return the labels of all arms: the configured ones in their order, then others that ran."""
    configured = [arm["label"] for arm in results.get("config", {}).get("arms", [])]
    return list(dict.fromkeys(configured + [run["arm"] for run in results["runs"]]))


def control_labels(results: Mapping[str, Any]) -> list[str]:
    """Return the labels of the arms that others are measured against, plainest method first.

    An arm of the configuration says itself whether it is a control; where it does not, as in files
    written before, and for an arm that the configuration does not list, the table of methods does.
    The method of an arm without one is its label.
    """
    arms = {label: {"label": label} for label in arm_labels(results)}
    arms |= {arm["label"]: arm for arm in results.get("config", {}).get("arms", [])}
    contrast = results.get("config", {}).get("contrast") or {"controls": [], "arm": None}
    for label in (label for label in (*contrast["controls"], contrast["arm"]) if label in arms):
        arms[label] = {**arms[label], "control": label != contrast["arm"]}
    order = list(METHODS)
    found: list[tuple[int, str]] = []
    for label, arm in arms.items():
        name = arm.get("method", label)
        method = METHODS.get(name)
        if arm.get("control", method is not None and method.control):
            found.append((order.index(name) if method is not None else len(order), label))
    return [label for _, label in sorted(found, key=lambda pair: pair[0])]


def main_metric(results: Mapping[str, Any]) -> str:
    """Return the test metric that decides: the configured one, or accuracy where no run has it.

    Runs store a metric with a name as it is, whatever its direction. One of the user's own is
    stored as the score that evolution maximised: where less is better it stands there negated.
    """
    config = results.get("config", {})
    registered = (config.get("contrast") or {}).get("metric")
    metric = str(registered or config.get("metric") or "accuracy")
    return metric if any(metric in run["test"] for run in results["runs"]) else "accuracy"


def higher_is_better(metric: str) -> bool:
    """Return the direction of a key of `runs[].test`, see `main_metric`.

    >>> [higher_is_better(m) for m in ("macro-f1", "neg-loss", "loss", "my.module:error")]
    [True, True, False, True]
    >>> higher_is_better("expected-calibration-error")
    False
    """
    return metric != "loss" and is_to_be_large(metric)


def _by_arm(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[int, float | None]]:
    """Return {arm: {seed: value}}; None for a value that is no finite number."""
    table: dict[str, dict[int, float | None]] = {}
    for run in runs:
        if metric not in run["test"]:
            continue
        seeds = table.setdefault(run["arm"], {})
        if run["seed"] in seeds:
            raise ValueError(
                f"arm {run['arm']!r} has seed {run['seed']} twice: keep one of the runs"
            )
        value = run["test"][metric]
        seeds[run["seed"]] = float(value) if is_finite(value) else None
    return table


def _contrast_row(
    arm: Mapping[int, float | None], control: Mapping[int, float | None]
) -> dict[str, Any] | None:
    pairs = [(arm[seed], control[seed]) for seed in arm if seed in control]
    finite = [(a, c) for a, c in pairs if a is not None and c is not None]
    if not pairs:
        return None
    row: dict[str, Any] = {"n": len(finite), "mean": None, "ci95": None, "p": None}
    if finite:
        contrast = paired_contrast([a for a, _ in finite], [c for _, c in finite])
        row |= {"mean": contrast.mean, "ci95": _as_list(contrast.ci95), "p": contrast.p}
    if len(finite) < len(pairs):
        of_arm, of_control = (any(pair[side] is None for pair in pairs) for side in (0, 1))
        whose = "both" if of_arm and of_control else "arm" if of_arm else "control"
        row |= {"not_finite": len(pairs) - len(finite), "diverged": whose}
    return row


def _as_list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
