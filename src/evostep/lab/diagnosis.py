"""What evostep finds on this machine: packages, devices, data, and what is missing of them.

It runs where nothing but Python is installed, so that it can say what to install.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from evostep._version import __version__
from evostep.errors import reason

Facts = dict[str, Any]

OLDEST_PYTHON = (3, 11)
_IMPORTED_AS = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
_OF_USERS = ("metrics", "cma", "onnx", "ray", "lab")  # extras; what is for developers is left out
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(\[[^\]]*\])?\s*(>=(?P<least>[\w.]+))?[^;]*"
    r"(;.*extra == ['\"](?P<extra>\w+))?"
)


def diagnose() -> Facts:
    """Return what is found, as plain data.

    Returns:
        ``"evostep"`` and ``"python"``, versions; ``"packages"``: name -> version, least version,
        state (``"fine"``, ``"missing"``, ``"too old"``, ``"broken"``), cure and the extras that
        need it; ``"devices"``, ``"data"``, ``"places"``; ``"problems"``: lines, each with its
        cure; ``"usable"``: whether the library can be used at all.
    """
    packages = {name: _package(name, *told) for name, told in _requirements().items()}
    torch = packages["torch"]["state"] == "fine"
    problems = [
        f"{name} {facts['version'] or ''} is {facts['state']}{facts['why']}: {facts['cure']}"
        for name, facts in packages.items()
        if facts["state"] in ("too old", "broken") or (name == "torch" and not torch)
    ]
    if sys.version_info < OLDEST_PYTHON:
        problems.append(f"Python {platform.python_version()} is too old: use 3.11 or newer")
    devices, of_devices = _devices() if torch else ({}, [])
    places = _places()
    root = places["EVOSTEP_DATA"]
    if root and not Path(root).expanduser().is_dir():
        problems.append(f"EVOSTEP_DATA is {root}, which is no folder: correct it, or unset it")
    return {
        "evostep": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "devices": devices,
        "data": _data(),
        "places": places,
        "problems": problems + of_devices,
        "usable": torch and sys.version_info >= OLDEST_PYTHON,
    }


def _requirements() -> dict[str, tuple[str, list[str]]]:
    """Return name -> (least version, extras that need it) of what the package asks for."""
    try:
        lines = importlib.metadata.requires("evostep") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        lines = []
    found: dict[str, tuple[str, list[str]]] = {"torch": ("2.5", [])}
    for line in lines:
        told = _REQUIREMENT.match(line)
        assert told is not None, f"{line!r} is no requirement"
        extra = told["extra"]
        if told["name"] != "evostep" and (extra is None or extra in _OF_USERS):
            _, extras = found.setdefault(told["name"], (told["least"] or "0", []))
            extras += [extra] if extra else []
    return found


def _package(name: str, least: str, extras: list[str]) -> Facts:
    """Import a package, and return its version and what is wrong with it."""
    wanted = f"evostep[{extras[0]}]" if extras else f"{name}>={least}"
    facts = {"version": None, "least": least, "extras": extras, "state": "fine", "why": ""}
    facts |= {"cure": f"pip install '{wanted}'"}
    try:
        facts["version"] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return facts | {"state": "missing"}
    module = _IMPORTED_AS.get(name.lower(), name.replace("-", "_"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything
        cure = f"pip install --force-reinstall '{name}'"
        return facts | {"state": "broken", "why": f" ({reason(error)})", "cure": cure}
    if _numbers(str(facts["version"])) < _numbers(least):
        cure = f"pip install --upgrade '{name}>={least}'"
        return facts | {"state": "too old", "why": f" ({least} is needed)", "cure": cure}
    return facts


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with.

    Example:
        >>> _numbers("2.14.1+cu130") < _numbers("2.5"), _numbers("2.5.0rc1") < _numbers("2.5")
        (False, False)
    """
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else [0]
    return tuple(numbers)


def _devices() -> tuple[Facts, list[str]]:
    import torch

    from evostep.lab.comparison.environment import cpu_name

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    gpus, problems = [], []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            gpus.append(f"cuda:{number} {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        problems.append(
            f"torch {torch.__version__} cannot use the GPU that nvidia-smi tells of: install a "
            "driver that fits it"
        )
    elif shutil.which("nvidia-smi"):
        problems.append(
            f"torch {torch.__version__} is built for CPUs, and there is a GPU: install torch with "
            "CUDA"
        )
    if torch.backends.mps.is_available():
        gpus.append("mps")
    if cores and threads > cores:
        problems.append(
            f"torch takes {threads} threads and may use {cores} cores: give --threads {cores}"
        )
    cuda = torch.version.cuda
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "threads": threads,
        "gpus": gpus,
        "built for": f"CUDA {cuda}" if cuda else "CPU",
    }, problems


def _data() -> Facts:
    """Return name -> where the files of a data set are (None: nowhere), and how to get them.

    Where not even this can be found out, there are none.
    """
    try:
        from evostep.lab.data.sources import SOURCES
    except ImportError:
        return {}
    found: Facts = {}
    for name, reader in SOURCES.items():
        if reader.find is not None:
            place = reader.find()
            found[name] = {
                "found": None if place is None else str(place),
                "cure": None if place is not None else reader.cure,
            }
    return found


def _places() -> Facts:
    free = f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB"
    found = {"EVOSTEP_DATA": os.environ.get("EVOSTEP_DATA"), "free here": free}
    try:
        from evostep.lab.data.sources.cache import cache_directory
    except ImportError:
        return found
    return found | {"cache": str(cache_directory())}
