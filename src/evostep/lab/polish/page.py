"""The page and the card of a polished network, from its record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evostep.lab.polish.picture import draw_recalls
from evostep.lab.polish.wording import (
    NOT_CORRECTED,
    Row,
    class_rows,
    contrast_texts,
    metric_rows,
    what_was_done,
)
from evostep.lab.report.page import render_template
from evostep.lab.report.wording import plain, stamp
from evostep.lab.storage import write_bytes
from evostep.polishing.result import NO_GAIN

Record = Mapping[str, Any]
# What was chosen, by the space.
_EVOLVED = {
    "head": "The weights of the last layer",
    "norm": "The weights of the normalisation layers",
    "scales": "The scales of the layers",
    "auto": "The space, and what moves in it,",
}


def write_page(folder: Path, record: Record) -> None:
    """Write ``report.html``, the card ``README.md`` and its picture into a folder.

    Args:
        folder: where to.
        record: as ``results.json`` holds it.
    """
    context = _context(record)
    drawing = context["drawing"]
    write_bytes(folder / f"{drawing.name}.png", drawing.png)
    write_bytes(folder / "report.html", render_template("polish.html.j2", context).encode())
    write_bytes(folder / "README.md", render_template("card.md.j2", context).encode())


def _context(record: Record) -> dict[str, Any]:
    """Return what both templates show, as text."""
    environment, settings = record["environment"], record["settings"]
    return {
        "model": record["model"],
        "data": record["data"],
        "metric": record["metric"],
        "n": f"{record['n']:,}",
        "headline": record["summary"],
        "title": record["summary"].split(" (")[0],
        "findings": record["summary"].split("; "),
        "done": what_was_done(record),
        "drawing": draw_recalls(record),
        "contrasts": contrast_texts(record),
        "unit": " (points)" if record["fraction"] else "",
        "start": f"start ({record['start']})",
        "after": "polished, not applied" if record["verdict"] == NO_GAIN else "after",
        "metrics": list(map(_cells, metric_rows(record))),
        "classes": list(map(_cells, class_rows(record))),
        "not_corrected": NOT_CORRECTED,
        "limits": limits(record),
        "weights": record["applied"],
        "evolved": record["evolved"],
        "loads": _loads(record),
        "what": _EVOLVED.get(settings["space"], "The biases of the outputs"),
        "folds": settings["confirm"] == "folds",
        "use": None if record["evolved"] else how_to_use(record),
        "of_file": record["arguments"].get("scores") is not None,
        "command": record["command"],
        "stamp": stamp(environment),
        "details": [
            ("Arguments", _texts(record["arguments"])),
            ("Settings", _texts({**record["settings"], **record["facts"]})),
            ("Decision", _texts(record["decision"])),
            ("Environment", _texts(environment)),
        ],
        "metadata": metadata(record),
    }


def how_to_use(record: Record) -> str:
    """Return the code that decides by what was found."""
    decision = record["decision"]
    scores, count = decision.get("scores", "logits"), len(decision["bias"])
    shape = "(n,)" if decision["kind"] == "binary" else f"(n, {count})"
    each = "a list of names" if decision["kind"] == "labels" else "a name"
    return (
        "import evostep\n\n"
        'decide = evostep.load_decision("decision.json")  # NumPy alone\n'
        "decide.classes  # the order of the columns\n"
        f"decide.names({scores})  # {shape} -> {each} for each row"
    )


def limits(record: Record) -> list[str]:
    """Return what a reader has to know before believing the numbers."""
    settings = record["settings"]
    folds = settings["confirm"] == "folds"
    if folds:
        of_what = (
            f"The intervals are of the procedure on {settings['folds'] - 1} of "
            f"{settings['folds']} parts of the examples, not of what was chosen on all of them in "
            f"the end; both decide {record['agreement']:.1%} of the examples alike."
        )
    else:
        of_what = (
            f"The intervals are of the very {'weights' if record['evolved'] else 'biases'} that "
            f"were found, on {record['n']:,} examples that took no part in finding them."
        )
    found = [
        of_what,
        "95% percentile intervals of a bootstrap that draws "
        + ("whole groups" if record["groups"] else "examples")
        + " within their class"
        + ("; the folds share data, so they are approximate." if folds else "."),
        "They hold for examples like these: not for those that the network was trained on, nor for "
        "other class frequencies.",
        f"Class frequencies of logit adjustment: {record['prior']}.",
        "What got worse stands in the tables beside what got better: a better "
        f"{record['metric']} is paid for by others.",
    ]
    if record["needed"]:
        found.insert(0, f"About {record['needed']:,} examples would confirm what is not confirmed.")
    return found + [f"{note[0].upper()}{note[1:]}." for note in record["notes"]]


def metadata(record: Record) -> str:
    """Return the card's header as YAML, in the keys that the Hugging Face Hub reads."""
    network = "scores" not in record["arguments"] or record["arguments"]["scores"] is None
    task = "image-classification" if network else "tabular-classification"
    task = record["facts"].get("task", task)
    ended = {"checkpoint": "before"}
    after = "checkpoint" if record["verdict"] == NO_GAIN else "polished"
    if record["verdict"] not in (NO_GAIN, "improved"):
        after = "start"
    results = {
        "task": {"type": task},
        "dataset": {"type": "other", "name": record["data"]},
        "metrics": [
            {
                "type": record["metric"],
                "name": f"{record['metric']} (cross-fitted, {ended.get(after, 'after')} polishing)",
                "value": record["values"][after],
            }
        ],
    }
    header = {
        "library_name": "transformers" if _loads(record) else "evostep",
        "tags": ["evostep", "polished", task],
        **({"pipeline_tag": task} if network else {}),
        "metrics": [record["metric"]],
        "model-index": [{"name": record["model"], "results": [results]}],
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=100)


def _loads(record: Record) -> str:
    """Return the class of Hugging Face's that loads what was written; empty where none does."""
    kind = {"text-classification": "Sequence", "token-classification": "Token"}
    found = kind.get(record["facts"].get("task", ""))
    return f"AutoModelFor{found}Classification" if found and record["applied"] else ""


def _cells(row: Row) -> tuple[str, ...]:
    return (row.name, *row.values, row.change)


def _texts(pairs: Mapping[str, Any]) -> dict[str, str]:
    return {name: plain(value) for name, value in pairs.items() if value is not None}
