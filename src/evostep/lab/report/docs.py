"""The generated parts of a page of documentation, from the results that are published.

A part stands between two lines, ``<!-- begin NAME: ... -->`` and ``<!-- end NAME -->``; what is
written by hand around them stays. NAME is a folder of results, "registered" (every contrast that
was written down, corrected by Holm over all of them), or "others" (folders without a part).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evostep.errors import InputError, warn
from evostep.lab.report.page import render_template, report_context
from evostep.lab.report.records import read_results
from evostep.lab.report.registered import holm, registered_verdict
from evostep.lab.report.wording import ABSENT, MINUS, markdown, p_text
from evostep.lab.storage import read_json, write_bytes

REGISTERED, OTHERS = "registered", "others"
_PART = re.compile(
    r"^<!-- begin (?P<name>[\w.-]+)(?::.*)? -->\n.*?^<!-- end (?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
_AS_IT_IS = {"cost"}  # metrics of the arena that are told in their own unit, not in points

_CURE = "restore it"

Results = Mapping[str, Any]


def write_docs(page: Path, folder: Path) -> Path:
    """Write the generated parts of a page again.

    Args:
        page: Markdown with at least one part.
        folder: of results; each of its folders with a `results.json` is read.

    Returns:
        The page.

    Raises:
        InputError: the page cannot be read or has no part, a part has no results, or results are
            malformed.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{page} cannot be read: run `evostep report --docs` in the project's folder"
        ) from error
    write_bytes(page, filled(text, folder).encode())
    return page


def filled(text: str, folder: Path) -> str:
    """Return a page with its generated parts as the results in `folder` have them.

    Raises:
        InputError: as `write_docs`.
    """
    names = [match["name"] for match in _PART.finditer(text)]
    if not names:
        raise InputError(
            "the page has no generated part: write <!-- begin registered --> and "
            "<!-- end registered --> around where it is to stand"
        )
    parts = {path.parent.name: path for path in sorted(folder.glob("*/results.json"))}
    read = {name: read_json(path, cure=_CURE) for name, path in parts.items()}
    comparisons = {name: read_results(folder / name) for name in read if _is_comparison(read[name])}
    tables = {
        name: table
        for name, results in (read | comparisons).items()
        if (table := _table(results, parts[name])) is not None
    }
    for name in names:
        if name not in {REGISTERED, OTHERS, *tables}:
            raise InputError(f"{folder / name} has no results: take the part {name!r} out")
    rest = [name for name in tables if name not in names]
    if rest and OTHERS not in names:
        raise InputError(
            f"the page has no part for {', '.join(rest)}: write <!-- begin {OTHERS} --> and "
            f"<!-- end {OTHERS} --> around where it is to stand"
        )
    tables[OTHERS] = "\n\n".join(f"### {name}\n\n{tables[name]}" for name in rest)
    tables[REGISTERED] = registered_table(comparisons)

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        inner = f"\n{tables[name]}\n" if tables[name] else ""
        begin = f"<!-- begin {name}: written by `evostep report --docs` -->"
        return f"{begin}\n{inner}\n<!-- end {name} -->"

    return _PART.sub(replaced, text)


def registered_table(comparisons: Mapping[str, Results]) -> str:
    """Return the registered contrasts as a table, corrected by Holm over all of them.

    Args:
        comparisons: name -> results with "registered", where a contrast was; others are left out.
    """
    found = {name: r["registered"] for name, r in comparisons.items() if r.get("registered")}
    if not found:
        return "No contrast has been registered yet."
    corrected = holm({name: row["p"] for name, row in found.items()})
    lines = [
        "| arena | hypothesis | arm | metric | controls | pairs | p | p, Wilcoxon | "
        "p, Holm over arenas | result |",
        "|:--|:--|:--|:--|:--|--:|--:|--:|--:|:--|",
    ]
    for name, row in found.items():
        p_values = (_p(p) for p in (row["p"], row["p_wilcoxon"], corrected[name]))
        cells = [name, row["hypothesis"], row["arm"], row["metric"], ", ".join(row["controls"])]
        result = _result(row, corrected[name])
        pairs = f"{row['pairs']} of {row['n']}" if row["pairs"] < row["n"] else str(row["pairs"])
        lines.append(_line([*map(markdown, cells), pairs, *p_values, result]))
    sentences = [f"- {name}: {registered_verdict(comparisons[name])}" for name in found]
    return "\n".join([*lines, "", *map(_escaped, sentences)])


def _result(row: Mapping[str, Any], corrected: float | None) -> str:
    """Return what came of a registered contrast, once p is corrected over the arenas."""
    if row["beats"]:
        held = corrected is not None and corrected < 0.05
        return "**beats all**" if held else "beats all, not after Holm"
    return str(row["outcome"])


def _is_comparison(results: object) -> bool:
    return isinstance(results, dict) and isinstance(results.get("runs"), list)


def _table(results: Any, path: Path) -> str | None:
    """Return the table of a folder's results; None, with a warning, where their form is unknown."""
    if _is_comparison(results):
        context = report_context(results) | {"brief": True}
        return render_template("table.md.j2", context).strip()
    if isinstance(results, dict) and {"means", "contrasts", "claims"} <= results.keys():
        return _arena(results)
    if isinstance(results, dict) and _simulated(results):
        return _simulation(results)
    warn(f"{path} has a form that no table is known for: it is left out of the page")
    return None


def _simulated(results: Results) -> dict[str, Results]:
    """Return the arms of a simulation of polishing, by name."""
    return {
        name: row for name, row in results.items() if isinstance(row, dict) and "confirmed" in row
    }


def _simulation(results: Results) -> str:
    """Return the table of a simulation: what polishing confirmed, and what was there."""
    lines = [
        "| | data sets | confirmed | interval holds the true gain | mean gain told, points | "
        "mean true gain, points |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for name, row in _simulated(results).items():
        counts = [row["n"], row["confirmed"], row["interval contains the true gain"]]
        gains = [_signed(100 * row[key], 1) for key in ("mean gain", "mean true gain")]
        lines.append(_line([name, *map(str, counts), *gains]))
    return "\n".join([*lines, "", _made_by(results)])


def _arena(results: Results) -> str:
    """Return the tables of polishing on data: the family of tests, all differences, the claims."""
    family = [row for row in results["contrasts"] if "holm_p" in row]
    lines = [f"{results['runs']} runs. Gains of polish over each control, positive: better."]
    if family:
        lines += [
            "",
            f"The family of tests, {family[0]['metric']}, in {_unit(family[0]['metric'])}:",
        ]
        head = ["", "control", "n", "gain", "95% interval", "better, worse", "p", "p, Holm"]
        lines += ["", _line(head), "|:--|:--|--:|--:|--:|--:|--:|--:|"]
    for row in family:
        p_values = [_p(row[key]) for key in ("wilcoxon_p", "holm_p")]
        both = f"{row['better']}, {row['worse']}"
        cells = [row["group"], row["control"], str(row["n"]), *_gain(row), both, *p_values]
        lines.append(_line(cells))
    metrics = list(dict.fromkeys(row["metric"] for row in results["contrasts"]))
    names = dict.fromkeys((row["group"], row["control"]) for row in results["contrasts"])
    lines += ["", "Every gain, in points (cost: in its own unit), with its 95% interval:", ""]
    lines += [_line(["", "control", *metrics]), "|:--|:--|" + "--:|" * len(metrics)]
    cell = {
        (row["group"], row["control"], row["metric"]): _spread(row) for row in results["contrasts"]
    }
    for group, control in names:
        cells = [cell.get((group, control, metric), ABSENT) for metric in metrics]
        lines.append(_line([group, control, *cells]))
    lines += ["", "What polishing said of itself, beside what the test examples show:", ""]
    keys = [
        key
        for key in (results["claims"] or [{}])[0]
        if key not in ("unit", "metric", "mean gain told", "mean gain on the test set")
    ]
    told = ["mean gain told", "mean gain on the test set"]
    lines += [_line(["", "metric", *keys, *told]), "|:--|:--|" + "--:|" * (len(keys) + 2)]
    for row in results["claims"]:
        gains = [_signed(_factor(row["metric"]) * row[key], 2) for key in told]
        lines.append(_line([row["unit"], row["metric"], *(str(row[k]) for k in keys), *gains]))
    return "\n".join([*lines, "", _made_by(results)])


def _gain(row: Results) -> list[str]:
    """Return a gain and its interval."""
    factor, ends = _factor(row["metric"]), row["ci95"]
    interval = " to ".join(_signed(factor * x, 2) for x in ends) if ends else ABSENT
    return [_signed(factor * row["gain"], 2), interval]


def _spread(row: Results) -> str:
    gain, interval = _gain(row)
    return f"{gain} ({interval})" if row["ci95"] else gain


def _factor(metric: str) -> float:
    return 1.0 if metric in _AS_IT_IS else 100.0


def _unit(metric: str) -> str:
    return "its own unit" if metric in _AS_IT_IS else "points"


def _signed(x: float, digits: int) -> str:
    return f"{x:+.{digits}f}".replace("-", MINUS)


def _p(p: float | None) -> str:
    return ABSENT if p is None else p_text(p).removeprefix("= ")


def _made_by(results: Results) -> str:
    """Return command, date and versions, as far as they were recorded."""
    known = [f"{key} {results[key]}" for key in ("torch", "python") if results.get(key)]
    known += [f"commit {results['commit'][:7]}"] if results.get("commit") else []
    where = [str(results[key]) for key in ("machine", "date") if results.get(key)]
    told = "; ".join(filter(None, [*where, ", ".join(known)]))
    return f"Command: `{results.get('command') or 'not recorded'}`. {told}."


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(sentence: str) -> str:
    return "- " + markdown(sentence.removeprefix("- "))
