"""``evostep polish``: from a trained network to a better metric, confirmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evostep.cli.options import add_option, add_out
from evostep.cli.output import answer, note
from evostep.cli.schema import kind_of, read_schema
from evostep.lab.options import Options
from evostep.lab.polish.options import NETWORK, PolishOptions, own_help, own_kinds

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "improve a trained network on the metric that is reported, confirmed"
DESCRIPTION = (
    "Choose the biases of a trained network's outputs by the metric that is reported, on examples "
    "that it was not trained on, and confirm the gain by cross-fitting. Writes decision, results, "
    "card and page, and the polished weights."
)
USAGE = (
    "evostep polish (--model M [--init-from W] --data D | --scores FILE) [--out DIR] [option ...]"
)


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add the command's arguments."""
    add_subject(parser)
    add_out(parser)


def run(parsed: Any) -> None:
    """Run the command."""
    options = make_polish_options(parsed)
    from evostep.lab.polish.run import run_polish
    from evostep.lab.polish.wording import summarise

    record, finished = run_polish(options, parsed.out)
    if finished:
        note(f"{parsed.out} holds the result of this command:")
    page = parsed.out / "report.html"
    answer(f"{summarise(record)}\npage: {page}", {"out": parsed.out, "page": page, **record})


def add_subject(parser: ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """Add what tells the network, or the scores, the examples and the metric."""
    schema = read_schema()
    parser.add_argument("--config", action="config", help="YAML file with options")
    told, kinds = own_help(), own_kinds()
    metrics = ", ".join(schema["names"]["polish"])
    own = [name for name in kinds if name not in skip]
    first = own.index("scores_are") + 1
    for name in own[:first]:
        add_option(parser, name, kinds[name], _default(name), told[name].format(metrics=metrics))
    add_network(
        parser,
        model="a folder that Hugging Face's save_pretrained wrote; an ONNX file; ",
        data="for a folder a CSV, parquet or JSON file of texts and their labels; ",
    )
    for name in own[first:]:
        add_option(parser, name, kinds[name], _default(name), told[name])


def add_network(parser: ArgumentParser, **more: str) -> None:
    """Add what tells a network and its examples; `more`: what else an option of these may be."""
    for name in NETWORK:
        option = read_schema()["options"][name]
        text = more.get(name, "") + option["help"]
        add_option(parser, name, kind_of(option), option["default"], text)


def make_polish_options(parsed: Any, **fixed: Any) -> PolishOptions:
    """Make options from what was set on the command line and in its files, and nothing else."""
    given = {name: parsed[name] for name in NETWORK if name in parsed}
    own = {name: parsed[name] for name in own_kinds() if name in parsed}
    return PolishOptions(**own, network=Options(**given, given=frozenset(given)), **fixed)


def _default(name: str) -> Any:
    return getattr(PolishOptions, name)
