"""The pages of the API: which names stand on which, and which of their members.

Only what a user calls is listed of a class; what the inside calls of it is not public.
"""

from __future__ import annotations

import ast
import textwrap
from dataclasses import dataclass
from pathlib import Path

import evostep

SOURCE = Path(__file__).resolve().parents[1] / "src" / "evostep"


@dataclass(frozen=True)
class Page:
    """A page of the API.

    Attributes:
        title: its headline.
        intro: Markdown below it.
        names: import path below ``evostep`` -> the members that are told, beside the class itself.
    """

    title: str
    intro: str
    names: dict[str, tuple[str, ...]]


_STATE = ("state_dict", "load_state_dict")

PAGES = {
    "polishing": Page(
        "Polishing",
        "What is done, and which metrics there are: [Polishing](../polish.md).",
        {
            "polishing.polish.polish": (),
            "polishing.out_of_fold.out_of_fold": (),
            "polishing.result.Polished": ("apply", "revert", "needed", "fell", "as_dict"),
            "polishing.evaluation.evaluate": (),
            "polishing.serving.load_decision": (),
            "polishing.estimator.DecisionClassifier": ("fit", "predict", "decision_function"),
        },
    ),
    "evolution": Page(
        "Evolution",
        "In a training loop `Evolved`, for a checkpoint `Evolution`.",
        {
            "optimizer.Evolved": ("evolve", "remember", "add_param_group", *_STATE),
            "evolution.Evolution": ("evolve", "remember", "reset", *_STATE),
            "suggest.suggest_sigma": (),
            "schedule.Alternate": ("generations",),
            "gradient_noise.GradientNoise": ("std", "remove", *_STATE),
        },
    ),
    "scoring": Page(
        "Scoring",
        "What each metric reads, and what it does not take: [What is scored](../scores.md).",
        {
            "scoring.fitness.Fitness": ("score", "gives_per_example"),
            "scoring.scores.Scores": ("value", "failed"),
        },
    ),
    "spaces": Page(
        "Spaces",
        "Which weights may move, in which coordinates: [Concepts](../concepts.md#space).",
        {
            "spaces.weights.AllWeights": (),
            "spaces.weights.Only": (),
            "spaces.span.Span": (),
        },
    ),
    "strategies": Page(
        "Strategies",
        "How members are drawn, and the center moved. Their formulas: "
        "[The mathematics](../strategies.md).",
        {
            "strategies.random_mutation.RandomMutation": (),
            "strategies.openai_es.OpenAIES": (),
            "strategies.snes.SNES": (),
            "strategies.cmaes.CMAES": (),
            "strategies.guided_es.GuidedES": (),
            "strategies.random_search.RandomSearch": (),
            "strategies.spsa.SPSA": (),
            "strategies.safe.Safe": ("cost",),
            "noise.draws.LowRank": ("factors",),
        },
    ),
    "acceptance": Page(
        "Acceptance",
        "When a new center is truly better: [Concepts](../concepts.md#acceptance).",
        {
            "acceptance.base.Always": (),
            "acceptance.base.Improves": (),
            "acceptance.paired.PairedTest": ("level", "p_value"),
            "acceptance.ladder.Ladder": (),
        },
    ),
    "population": Page(
        "Populations",
        "Several models that train, breed and compete.",
        {
            "population.esgd.ESGD": ("descend", "evolve", "best", *_STATE),
            "population.species.Species": ("draw",),
        },
    ),
    "integrations": Page(
        "Integrations",
        "What the loops of others take: [In every training loop](../frameworks.md). `Evolve` of "
        "`evostep.integrations.lightning`, `.transformers` and `.skorch` is one callback, told "
        "here once.",
        {
            "integrations.phases.Phases": (),
            "integrations.processes.evolve": (),
            "integrations.wrappers.find_evolved": (),
            "integrations.wrappers.evolved": (),
            "integrations.trackers.Tracker": ("begin", "generation", "phase", "close"),
            "integrations.trackers.scalars": (),
        },
    ),
    "records": Page(
        "Records",
        "What `evolve` returns, and keeps in `history`.",
        {"record.Record": (), "record.Verdict": ()},
    ),
    "extending": Page(
        "Extending",
        "What a strategy or a rule of your own derives from: [Add your own](../adding.md).",
        {
            "strategies.base.Strategy": ("size", "init", "member", "tell"),
            "strategies.base.NoiseStrategy": ("perturbed",),
            "strategies.base.Step": (),
            "acceptance.base.Rule": ("__call__", "check"),
        },
    ),
}


# Public, but not at the top: from where they are imported.
_PLACES = {
    "DecisionClassifier": "evostep.polishing.DecisionClassifier",
    "Tracker": "evostep.integrations.Tracker",
    "evaluate": "evostep.polishing.evaluate",
    "evolve": "evostep.integrations.evolve",
    "evolved": "evostep.integrations.evolved",
    "find_evolved": "evostep.integrations.find_evolved",
    "Phases": "Evolve, of evostep.integrations.lightning, .transformers, .skorch",
    "Rule": "evostep.acceptance.Rule",
    "Strategy": "evostep.strategies.Strategy",
}


def place_of(path: str) -> str:
    """Return the path from which a user imports a name.

    Example:
        >>> place_of("optimizer.Evolved"), place_of("strategies.base.Step")
        ('evostep.Evolved', 'evostep.strategies.base.Step')
    """
    name = path.rpartition(".")[2]
    top = f"evostep.{name}" if name in evostep.__all__ else f"evostep.{path}"
    return _PLACES.get(name, top)


def text(page: Page) -> str:
    """Return the Markdown of a page, which mkdocstrings fills from the docstrings."""
    lines = [f"# {page.title}", "", page.intro, ""]
    for path, members in page.names.items():
        told = "".join(f"\n        - {member}" for member in members) or " false"
        lines += [
            f"::: evostep.{path}",
            "    options:",
            f"      heading: {place_of(path)}",
            f"      members:{told}",
            "",
            *_source(path.rpartition(".")[0]),
        ]
    return "\n".join(lines)


def _source(module: str) -> list[str]:
    """Return what the head of a file tells of its source, as a note; nothing where it has none."""
    told = ast.get_docstring(ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text()))
    if told is None or "http" not in told:
        return []
    return ['??? quote "Source"', "", textwrap.indent(told, "    "), ""]
