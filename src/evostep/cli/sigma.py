"""``evostep sigma``: the sigma at which a few predictions of a trained network change."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from evostep.cli.options import add_option
from evostep.cli.output import answer
from evostep.cli.polish import add_network
from evostep.errors import InputError
from evostep.lab.options import Options
from evostep.lab.polish.options import NETWORK, Part, PolishOptions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from evostep.suggest import SigmaSuggestion

SUMMARY = "suggest a sigma for a trained network"
DESCRIPTION = (
    "Measure how many predictions of a trained network change as sigma grows, and suggest the "
    "sigma at which a few do. Nothing is written."
)
USAGE = "evostep sigma --model M --init-from W --data D [option ...]"
# name -> type, default, what the help says
_OWN: dict[str, tuple[Any, Any, str]] = {
    "part": (
        Part,
        "fitness",
        "part of the data on which predictions are compared",
    ),
    "split_seed": (int, None, "seed of the training run; default: told by the weights' folder"),
    "space": (str, "all", "which weights move: all, or patterns such as head,norm,layer4.*"),
    "share": (float, 0.05, "of the predictions that is to change"),
    "draws": (int, 4, "noisy copies for each sigma"),
    "scale": (Literal["rms", "absolute"], "rms", "unit of sigma: the weights' size, or 1"),
    "noise": (Literal["normal", "uniform"], "normal", "distribution of the noise"),
    "seed": (int, 0, "seed of the noise"),
}


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add the command's arguments."""
    parser.add_argument("--config", action="config", help="YAML file with options")
    add_network(parser)
    for name, (kind, default, text) in _OWN.items():
        told = "" if default is None else f" (default: {default})"
        add_option(parser, name, kind, default, text + told)


def run(parsed: Any) -> None:
    """Run the command."""
    found = suggest(parsed)
    answer(str(found), {**dataclasses.asdict(found), "reached": found.reached})


def suggest(parsed: Any) -> SigmaSuggestion:
    """Measure what the arguments name.

    Raises:
        InputError: a network, or examples, that cannot be read; a space of checkpoints.
    """
    own = {name: parsed.get(name, default) for name, (_, default, _) in _OWN.items()}
    given = {name: parsed[name] for name in NETWORK if name in parsed}
    if not given.keys() & {"model", "init_from"}:
        raise InputError("of which network? Give --model and --init-from")
    options = PolishOptions(
        network=Options(**given, given=frozenset(given)),
        split_seed=own.pop("split_seed"),
        part=own.pop("part"),
        seed=own["seed"],
        evaluates=True,
    )
    if options.onnx is not None:
        raise InputError(f"the weights of {options.onnx} cannot be moved: give a torch model")
    space = own.pop("space")
    if space.startswith("span"):
        raise InputError(f"--space {space} mixes checkpoints of a run: sigma is for weights")
    from evostep.lab.arms.precedence import make_space
    from evostep.lab.polish.subject import make_subject
    from evostep.suggest import suggest_sigma

    subject = make_subject(options)
    assert subject.model is not None, "it is not of ONNX"
    try:
        return suggest_sigma(subject.model, subject.examples, space=make_space(space), **own)
    except ValueError as error:  # a share, a number of draws or a space that cannot be
        raise InputError(str(error)) from error
