"""The generated parts of docs/results.md are those of the published results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evostep.errors import InputError
from evostep.lab.report.docs import filled, registered_table, write_docs
from evostep.lab.report.records import read_results
from evostep.lab.storage import read_json

ROOT = Path(__file__).resolve().parents[3]
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"
EMPTY = "above\n<!-- begin {0} -->\nold\n<!-- end {0} -->\nbelow\n"


def comparison(arm: list[float], hypothesis: str | None = "it gains") -> dict[str, Any]:
    """Invent a comparison of sgd with es, which scores so much above it on each seed."""
    runs = [
        {"arm": label, "seed": seed, "test": {"accuracy": 0.5 + 0.01 * seed + gain}}
        for seed, gain in enumerate(arm)
        for label, gain in (("sgd", 0.0), ("es", gain))
    ]
    config: dict[str, Any] = {"metric": "accuracy", "seeds": list(range(len(arm)))}
    config["arms"] = [{"label": "sgd"}, {"label": "es", "control": False}]
    if hypothesis is not None:
        config["contrast"] = {"hypothesis": hypothesis, "arm": "es", "controls": ["sgd"],
                              "metric": "accuracy", "seeds": config["seeds"]}  # fmt: skip
    made = {"command": "evostep compare --out a", "date": "2026-01-02", "cpu": "A CPU"}
    return {"config": config, "environment": made, "runs": runs}


def write(folder: Path, **results: dict[str, Any]) -> Path:
    for name, content in results.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "results.json").write_text(json.dumps(content))
    return folder


def named(row: dict[str, Any]) -> tuple[str, str | None, str]:
    return row["arm"], row.get("control"), row["metric"]


def holds(found: Any, published: Any) -> bool:
    """Return whether what was published is found: numbers but for rounding, younger keys aside."""
    if isinstance(published, dict):
        return all(key in found and holds(found[key], published[key]) for key in published)
    if isinstance(published, list):
        return len(found) == len(published) and all(map(holds, found, published))
    return bool(
        found == (pytest.approx(published, abs=1e-9) if type(published) is float else published)
    )


def test_the_page_is_what_the_results_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, RESULTS) == text, "run `evostep report --docs`"


def test_published_statistics_are_those_of_the_published_runs() -> None:
    for path in RESULTS.glob("*/results.json"):
        published = read_json(path)
        if isinstance(published.get("runs"), list):
            found = read_results(path.parent)
            for key in ("arms", "contrasts"):
                rows = {named(row): row for row in found[key]}
                for row in published[key]:  # newer versions know more controls
                    assert holds(rows[named(row)], row), f"{named(row)} in {path}"
            assert holds(found.get("registered"), published.get("registered")), path


def test_what_is_written_by_hand_stays_and_parts_are_made_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "results", one=comparison([0.03, 0.03, 0.04], None))
    page = tmp_path / "page.md"
    page.write_text(EMPTY.format("one") + EMPTY.format("registered"))
    text = write_docs(page, folder).read_text()
    assert text.count("above\n") == text.count("\nbelow\n") == 2
    assert "old" not in text
    assert "es beats the control, sgd, in test accuracy, by 3.33 points" in text
    assert "evostep compare --out a`. A CPU; 2026-01-02" in text
    assert "| es | 3 | 54.33 ± 1.53 |" in text
    assert "No contrast has been registered yet." in text
    assert filled(text, folder) == text
    (folder / "one" / "results.json").write_text(json.dumps(comparison([-0.03, -0.03, -0.04])))
    assert "es is worse than sgd by 3.33 points" in filled(text, folder)


def test_registered_contrasts_are_corrected_over_all_of_them(tmp_path: Path) -> None:
    gains = {"a": [0.02, 0.03, 0.05, 0.03], "b": [0.01, 0.05, 0.06, 0.03], "c": [-0.2, -0.2, -0.21]}
    folder = write(tmp_path, **{name: comparison(gain, name) for name, gain in gains.items()})
    read = {name: read_results(folder / name) for name in gains}
    table = registered_table(read).splitlines()
    rows = {line.split(" | ")[1]: line.split(" | ") for line in table[2:5]}
    p = {name: read[name]["registered"]["p"] for name in gains}
    assert p["a"] < p["b"] < 0.05 < 2 * p["b"]
    assert rows["a"][8] == f"{3 * p['a']:.3f}"
    assert rows["b"][8] == f"{2 * p['b']:.3f}"
    assert rows["a"][9] == "**beats all** |"
    assert rows["b"][9] == "beats all, not after Holm |"
    assert rows["c"][6:] == ["1.000", "1.000", "1.000", "worse |"]
    assert "es is worse than sgd by 20.33 points" in table[-1]
    alone = registered_table({"b": read["b"]})
    assert "**beats all**" in alone


def test_other_forms_of_results_have_tables_and_unknown_ones_are_told(tmp_path: Path) -> None:
    row = {"group": "mlp", "control": "none", "n": 5, "gain": 0.04, "better": 5, "worse": 0,
           "ci95": [0.01, 0.07], "wilcoxon_p": 0.01}  # fmt: skip
    claim = {"unit": "mlp", "metric": "g-mean", "n": 5, "confirmed": 3, "mean gain told": 0.02,
             "mean gain on the test set": -0.01}  # fmt: skip
    rows = [{**row, "metric": "g-mean", "holm_p": 0.04}, {**row, "metric": "cost", "gain": 1.5}]
    arena = {"runs": 5, "means": {}, "claims": [claim], "contrasts": rows}
    arena["command"] = "python arena.py"
    folder = write(tmp_path, arena=arena, odd={"numbers": [1]})
    with pytest.warns(UserWarning, match="odd/results.json has a form"):
        text = filled(EMPTY.format("others"), folder)
    assert "### arena" in text
    assert "| mlp | none | 5 | +4.00 | +1.00 to +7.00 | 5, 0 | 0.010 | 0.040 |" in text
    assert "| mlp | none | +4.00 (+1.00 to +7.00) | +1.50 (+0.01 to +0.07) |" in text
    assert "| mlp | g-mean | 5 | 3 | +2.00 | −1.00 |" in text
    assert "Command: `python arena.py`" in text
    assert "odd" not in text


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("nothing\n", "write <!-- begin registered -->"),
        (EMPTY.format("two"), r"two has no results: take the part 'two' out"),
        (EMPTY.format("registered"), "the page has no part for one: write <!-- begin others -->"),
    ],
)
def test_a_page_that_cannot_be_filled_is_left_alone(page: str, told: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "results", one=comparison([0.02, 0.03, 0.05]))
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(InputError, match=told) as caught:
        write_docs(path, folder)
    assert "\n" not in str(caught.value)
    assert path.read_text() == page
    with pytest.raises(InputError, match="cannot be read"):
        write_docs(tmp_path / "none.md", folder)
