"""``evostep polish``: from a trained network to a better metric, confirmed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.cli.schema import kind_of, read_schema
from evostep.lab.options import Options, flag
from evostep.lab.polish.options import NETWORK, PolishOptions, own_help, own_kinds

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "improve a trained network on the metric that is reported, confirmed"
DESCRIPTION = (
    "Choose the biases of a trained network's outputs by the metric that is reported, on examples "
    "that it was not trained on, and confirm the gain by cross-fitting. Writes decision, results, "
    "card and page, and the polished weights."
)
USAGE = "evostep polish (--model M --init-from W --data D | --scores FILE) --out DIR [option ...]"


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add the command's arguments."""
    add_subject(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")


def run(parsed: Any) -> None:
    """Run the command."""
    options = make_polish_options(parsed)
    from evostep.lab.polish.run import run_polish
    from evostep.lab.polish.wording import summarise

    record, finished = run_polish(options, parsed.out)
    if finished:
        print(f"{parsed.out} holds the result of this command:")
    print(summarise(record))
    print(f"page: {parsed.out / 'report.html'}")


def add_subject(parser: ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """Add what tells the network, or the scores, the examples and the metric."""
    schema = read_schema()
    parser.add_argument("--config", action="config", help="YAML file with options")
    told, kinds = own_help(), own_kinds()
    metrics = ", ".join(schema["names"]["polish"])
    own = [name for name in kinds if name not in skip]
    for name in own[:3]:
        _add(parser, name, kinds[name], _default(name), told[name].format(metrics=metrics))
    for name in NETWORK:
        option = schema["options"][name]
        text = "an ONNX file; " + option["help"] if name == "model" else option["help"]
        _add(parser, name, kind_of(option), option["default"], text)
    for name in own[3:]:
        _add(parser, name, kinds[name], _default(name), told[name])


def make_polish_options(parsed: Any, **fixed: Any) -> PolishOptions:
    """Make options from what was set on the command line and in its files, and nothing else."""
    given = {name: parsed[name] for name in NETWORK if name in parsed}
    own = {name: parsed[name] for name in own_kinds() if name in parsed}
    return PolishOptions(**own, network=Options(**given, given=frozenset(given)), **fixed)


def _default(name: str) -> Any:
    return getattr(PolishOptions, name)


def _add(parser: ArgumentParser, name: str, kind: Any, default: Any, text: str) -> None:
    alone: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
    parser.add_argument(flag(name), type=kind, default=default, help=text, **alone)
