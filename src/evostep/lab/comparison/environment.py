"""What a run ran on: versions, machine, command, date."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evostep._version import __version__
from evostep.errors import warn


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the environment as plain data for ``results.json``."""
    facts: dict[str, Any] = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "evostep": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        **what_bits_hang_on(device),
    }
    commit = _commit()
    if commit:
        facts["commit"] = commit
    return facts


def what_bits_hang_on(device: torch.device) -> dict[str, Any]:
    """Return that part of the environment with which the same run gives the same bits."""
    facts = {
        "torch": str(torch.__version__),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def warn_of_other_bits(before: Mapping[str, Any], device: torch.device) -> None:
    """Warn where a run goes on elsewhere than where it was stopped.

    Args:
        before: `what_bits_hang_on` then; what is not in it is not known.
        device: on which it goes on.
    """
    now = what_bits_hang_on(device)
    differs = [
        f"{name} {before[name]} -> {value}"
        for name, value in now.items()
        if before.get(name, value) != value
    ]
    if differs:
        warn(
            f"this run was stopped elsewhere ({'; '.join(differs)}): it goes on, but not to the "
            "bits of one that was never stopped"
        )


def merge_environments(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the runs of a comparison ran on: command and date of the last, and all the rest.

    Example:
        >>> merge_environments([{"torch": "2.1", "threads": 1}, {"torch": "2.1", "threads": 2}])
        {'torch': '2.1', 'threads': '1 and 2'}
    """
    merged: dict[str, Any] = {}
    by_date = sorted(environments, key=lambda one: str(one.get("date")))
    for name in dict.fromkeys(key for one in by_date for key in one):
        values = list(dict.fromkeys(one[name] for one in by_date if one.get(name) is not None))
        if len(values) > 1 and name not in ("command", "date"):
            merged[name] = " and ".join(map(str, values))
        else:
            merged[name] = values[-1] if values else None
    return merged


@functools.cache
def cpu_name() -> str:
    """Return the processor's name, or as much as is known of it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the source, with a plus where files differ from it; None outside git."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
