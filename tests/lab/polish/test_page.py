"""Card, page and picture of invented records: names of users, many classes, every verdict."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from evostep.lab.polish.page import write_page
from evostep.lab.polish.wording import class_rows, metric_rows, summarise


def record(verdict: str, classes: int = 3, **changed: Any) -> dict[str, Any]:
    """Invent what results.json holds."""
    contrast = {"value": 0.05, "low": 0.01, "high": 0.09, "p": 0.0002}
    names = [f"a|b <i>{i}</i>" for i in range(classes)]
    found = [[0.5, 0.6, 0.7 - 0.4 * (i % 2)] for i in range(classes)]
    return {
        "verdict": verdict,
        "summary": f"{verdict}: g-mean 50.0% -> 55.0%",
        "metric": "g-mean",
        "higher_is_better": True,
        "fraction": True,
        "n": 1200,
        "groups": None,
        "needed": 3000,
        "start": "logit adjustment",
        "chosen": "evolution, 5 generations, pull 0.1",
        "prior": "examples",
        "values": {"checkpoint": 0.5, "start": 0.52, "polished": 0.55},
        "metrics": {"g-mean": [0.5, 0.52, 0.55], "accuracy": [0.9, 0.89, 0.88], "mcc": [0.1] * 3},
        "contrasts": dict.fromkeys(("polished - checkpoint", "polished - start"), contrast),
        "classes": [*found[:-1], [None, None, None]],
        "class_names": names,
        "agreement": 0.98,
        "applied": False,
        "evolved": False,
        "sample_forwards": 0,
        "decision": {
            "kind": "classes",
            "bias": [0.0] * classes,
            "classes": names,
            "scores": "probabilities",
        },
        "settings": {"space": "decision", "confirm": "folds", "folds": 5},
        "facts": {"scores": "s.csv"},
        "notes": ["nothing was changed: a note"],
        "arguments": {"scores": "sha256:1", "scores_are": "probabilities"},
        "model": "scores in s.csv",
        "data": "s.csv",
        "command": "evostep polish --scores s.csv",
        "environment": {"cpu": "a processor", "torch": "2"},
        **changed,
    }


VERDICTS = ("improved", "improved by the start", "no confirmed gain")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_page_stands_alone_and_the_card_has_its_header(verdict: str, tmp_path: Path) -> None:
    write_page(tmp_path, record(verdict))
    page = (tmp_path / "report.html").read_text()
    assert "a|b &lt;i&gt;0&lt;/i&gt;" in page
    assert "<i>" not in page
    for outside in ("http:", "https:", "<script", "<link", "src="):
        assert outside not in page.replace("http://www.w3.org", "")
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    ET.fromstring(svg)
    assert (tmp_path / "recall.png").read_bytes()[:4] == b"\x89PNG"
    card = (tmp_path / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    told = yaml.safe_load(header)
    (result,) = told["model-index"][0]["results"]
    value = {"improved": 0.55, "improved by the start": 0.52}.get(verdict, 0.5)
    assert result["metrics"][0]["value"] == value
    assert result["task"]["type"] == "tabular-classification"
    assert result["dataset"] == {"type": "other", "name": "s.csv"}
    assert "About 3,000 examples" in text
    assert "a\\|b" in text
    assert "Nothing was changed: a note." in text
    assert "decide.names(probabilities)  # (n, 3) -> a name for each row" in text
    assert "decide.names(probabilities)" in page
    assert "evostep decide decision.json" in text
    assert f"<h1>{verdict}: g-mean 50.0% -&gt; 55.0%</h1>" in page


def test_what_is_told_follows_the_verdict() -> None:
    after = {v: metric_rows(record(v))[0].values[2] for v in VERDICTS}
    assert after == dict(zip(VERDICTS, ("55.0%", "52.0%", "55.0%"), strict=True))
    told = {v: summarise(record(v)) for v in VERDICTS}
    assert "chosen by evolution, 5 generations" in " ".join(told["improved"].split())
    assert "chosen by logit adjustment" in " ".join(told["improved by the start"].split())
    assert "polished" in told["no confirmed gain"].splitlines()[2]
    assert "Nothing was changed" in told["no confirmed gain"]


def test_what_is_better_goes_by_the_direction() -> None:
    lower = record("improved", metric="cost", higher_is_better=False, fraction=False)
    lower["values"] = {"checkpoint": 2.0, "start": 1.5, "polished": 1.0}
    row = metric_rows(lower)[0]
    assert row.name == "cost, lower is better"
    assert (row.values, row.change, row.better) == (("2.000", "1.500", "1.000"), "-1.000", 1.0)
    assert len(class_rows(lower)) == 2  # a class without examples has no recall


def test_many_classes_are_cut_short(tmp_path: Path) -> None:
    many = record("improved", 100)
    write_page(tmp_path, many)
    assert "The 40 classes that moved most, of 99." in (tmp_path / "report.html").read_text()
    lines = summarise(many).splitlines()
    assert len(lines) < 25
    assert max(map(len, lines)) <= 80
    assert "and 89 more, in results.json" in lines
