"""The one contrast of a comparison that is written down before its seeds are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evostep.errors import InputError, unknown_name
from evostep.lab.arms.arm import Arm
from evostep.lab.options import Options, check_type, parse_seeds, shown

_KINDS: dict[str, Any] = {
    "hypothesis": str,
    "arm": str,
    "controls": list[str],
    "metric": str,
    "tuning_seeds": str | int | list[int],
    "trials": dict,
}
_MAY_BE_ABSENT = {"tuning_seeds", "trials"}


def registered_contrast(options: Options, arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Return the contrast that the options register, as plain data; None where they register none.

    Its seeds are those of the comparison: who adds seeds until a difference shows finds one.

    Args:
        options: of the comparison.
        arms: of the comparison.

    Returns:
        ``{"hypothesis", "arm", "controls", "metric", "tuning_seeds", "trials", "seeds"}``.

    Raises:
        InputError: something is missing, of the wrong kind, or no arm; the metric is not measured;
            a control had fewer tuning trials than the arm; a seed was spent on tuning.
    """
    given = options.contrast
    if given is None:
        return None
    contrast = {str(name).replace("-", "_"): value for name, value in given.items()}
    for name, value in contrast.items():
        if name not in _KINDS:
            raise unknown_name("setting of contrast", name, _KINDS)
        check_type(f"{name} of contrast", value, _KINDS[name])
    for name in _KINDS:
        if name not in contrast and name not in _MAY_BE_ABSENT:
            raise InputError(f"contrast lacks {name}: it needs {', '.join(_KINDS)}")
    if not contrast["hypothesis"].strip():
        raise InputError("hypothesis of contrast is empty: write down what is expected, and why")
    labels = [arm.label for arm in arms]
    named = [contrast["arm"], *contrast["controls"]]
    for label in named:
        if label not in labels:
            raise unknown_name("arm of contrast", label, labels)
    if len(named) < 2 or len(set(named)) < len(named):
        raise InputError(
            f"contrast compares {', '.join(named)}: name an arm and other arms as its controls, "
            "each once"
        )
    metrics = dict.fromkeys([options.metric, "accuracy"])
    if contrast["metric"] not in metrics:
        raise unknown_name("metric of contrast", contrast["metric"], metrics)
    tuning = contrast.get("tuning_seeds", [])
    spent = parse_seeds(tuning) if tuning != [] else []
    if both := sorted(set(spent) & set(options.seed_list)):
        raise InputError(
            f"--seeds has {', '.join(map(str, both))}, which tuning has seen (tuning_seeds of "
            "contrast): take other seeds for results, or --contrast null for tuning"
        )
    return contrast | {
        "tuning_seeds": spent,
        "trials": _trials(contrast.get("trials", {}), named),
        "seeds": options.seed_list,
    }


def _trials(given: Mapping[str, Any], named: Sequence[str]) -> dict[str, int]:
    """Return how many tuning trials each arm had: as "arm" and "control" say, or its label."""
    known = {"arm", "control", *named}
    for name, value in given.items():
        if name not in known:
            raise unknown_name("arm in the trials of contrast", str(name), known)
        check_type(f"trials of {name} in contrast", value, int)
        if value < 0:
            raise InputError(f"trials of {name} in contrast must be at least 0, got {shown(value)}")
    arm, *controls = named
    trials = {arm: given.get(arm, given.get("arm", 0))}
    trials |= {label: given.get(label, given.get("control", 0)) for label in controls}
    for label in controls:
        if trials[label] < trials[arm]:
            raise InputError(
                f"contrast gives {arm} {trials[arm]} tuning trials and its control {label} "
                f"{trials[label]}: tune the control as often"
            )
    return trials
