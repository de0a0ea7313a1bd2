"""``evostep doctor``: versions, devices, threads and data, and what is missing of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evostep.cli.output import answer, manner
from evostep.errors import counted

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "tell what is installed and found, what is missing, and how to get it"
DESCRIPTION = (
    "Tell versions, devices, threads and data, what is missing and how to get it. The exit code is "
    "1 where evostep cannot be used, or something that is installed is broken or too old."
)
USAGE = "evostep doctor"


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add nothing: the command has no arguments of its own."""


def run(_: Any) -> None:
    """Run the command."""
    from evostep.lab.diagnosis import diagnose

    found = diagnose()
    answer("\n".join(describe(found, everything=manner().verbose)), found)
    if found["problems"]:
        raise SystemExit(1)


def describe(found: dict[str, Any], *, everything: bool = False) -> Iterator[str]:
    """Yield the lines of a diagnosis; those of packages that are fine only where asked for."""
    packages, devices = found["packages"], found["devices"]
    torch = packages["torch"]["version"] or "is missing"
    yield f"evostep {found['evostep']}, torch {torch}, Python {found['python']}"
    yield f"  on {found['platform']}"
    if devices:
        cores, threads = devices["cores"], devices["threads"]
        yield f"cpu      {devices['cpu']}: {counted(cores, 'core')}, {counted(threads, 'thread')}"
        yield f"gpu      {'; '.join(devices['gpus']) or 'none'} (torch for {devices['built for']})"
    for name, data in found["data"].items():
        yield f"data     {name}: {data['found'] or 'not found: ' + data['cure']}"
    for name, place in found["places"].items():
        yield f"place    {name}: {place or 'not set'}"
    for name, facts in packages.items():
        if everything and facts["version"]:
            yield f"package  {name} {facts['version']} (>= {facts['least']}): {facts['state']}"
    missing: dict[str, list[str]] = {}
    for name, facts in packages.items():
        if facts["state"] == "missing" and name != "torch":
            missing.setdefault(facts["cure"], []).append(name)
    for cure, names in missing.items():
        yield f"missing  {', '.join(names)}: {cure}"
    for problem in found["problems"]:
        yield f"problem  {problem}"
    if not found["problems"]:
        yield "all is well" if not missing else "what is installed is well"
