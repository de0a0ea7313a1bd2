"""Names from data, of classes, files and arms: they act on no terminal, table, card or page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evostep.cli import main
from evostep.errors import printable

pytestmark = pytest.mark.filterwarnings("ignore:Glyph .* missing from")  # of a font, in a picture

SCRIPT = "<script>document.title = 'ran'</script>"
IMAGE = "<img src=x onerror=\"document.title = 'ran'\">"
NAMES = {
    "script": SCRIPT,
    "image": IMAGE,
    "quotes": "\"'></title></style></svg></pre><script>document.title='ran'</script>",
    "ansi": "red \x1b[31m\x1b]0;title\x07 \x9b2J\x08",
    "direction": "cat \u202egod",
    "markdown": "[a](javascript:alert(1)) ![b](//x/y.png) `c` | d\n# e",
    "long": "x" * 10_000,
    "long words": "wide " * 2_000,
    "template": "{{ 7 * 7 }} {% raw %} ${7*7}",
    "null": "a\x00b",
}
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Tags(HTMLParser):
    """The tags of a page, and the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def polished(names: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """Polish scores of classes with these names; return where, and what was printed."""
    rows = [
        {name: float((i * 7 + 3 * c) % 5 == 0) * 2 - c / 3 for c, name in enumerate(names)}
        for i in range(40)
    ]
    columns = {f"score_{name}": [row[name] for row in rows] for name in names}
    import pyarrow as pa
    from pyarrow import parquet

    labels = [names[i % len(names)] for i in range(40)]
    parquet.write_table(pa.table({**columns, "label": labels}), "s.parquet")
    told = ["polish", "--scores=s.parquet", "--scores-are=logits", "--folds=3", "--budget=400"]
    assert main([*told, "--out=out"]) == 0
    assert main(["evaluate", *told[1:3]]) == 0
    captured = capfd.readouterr()
    return Path("out"), captured.out + captured.err


def reported(labels: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """Report a comparison whose arms, data and metric have these names."""
    test = {"accuracy": 0.9, "loss": 0.3, labels[0]: 0.5}
    arms = [{"label": label, "method": "sgd", "control": i == 0} for i, label in enumerate(labels)]
    config = {"arms": arms, "metric": labels[0], "model": labels[0], "data": labels[0]}
    runs = [
        {"arm": label, "seed": seed, "test": {**test, labels[0]: 0.5 + 0.1 * seed + 0.01 * i}}
        | {"sample_forwards": 100, "diverged": None, "train": {"accuracy": 0.9}}
        for i, label in enumerate(labels)
        for seed in (0, 1)
    ]
    about = {"environment": {"command": labels[0], "cpu": labels[0]}, "data": {"title": labels[0]}}
    Path("out").mkdir()
    Path("out/results.json").write_text(json.dumps({"config": config, "runs": runs, **about}))
    epoch = {"kind": "epoch", "seed": 0, "epoch": 0, "fitness": {labels[0]: 0.5, "loss": 1.0}}
    lines = [{**epoch, "arm": label, "sample_forwards": 100} for label in labels]
    Path("out/history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["report", "out"]) == 0
    captured = capfd.readouterr()
    return Path("out"), captured.out + captured.err


@pytest.mark.parametrize("make", [polished, reported])
def test_names_act_nowhere(make, capfd: pytest.CaptureFixture[str]) -> None:
    """In the terminal, the page, the pictures, the table and the card."""
    names = [*NAMES.values(), *(["half \ud800"] if make is reported else [])]
    folder, told = make(names, capfd)
    assert not ACTING.search(told)
    assert all(len(line) <= 2_100 or "wide" in line for line in told.splitlines())
    page = (folder / "report.html").read_text()
    found = Tags(page)
    assert not {"script", "img", "iframe", "a"} & found.tags - {"a"}
    assert not {name for name in found.attributes if name.startswith("on")}
    assert SCRIPT in found.text
    assert not ACTING.search(page)
    for path in folder.rglob("*.svg"):
        ET.parse(path)
    for path in folder.glob("*.md"):
        text = path.read_text()
        assert not ACTING.search(text)
        body = text.split("---\n", 2)[-1]  # the card's header is YAML, which quotes
        body = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
        assert not re.search(r"(?<!\\)<(script|img)", body.partition("Command:")[0])
        assert not re.search(r"(?<!\\)\]\(javascript", body.partition("Command:")[0])


def test_a_text_that_acts_nowhere_stays_as_it_is() -> None:
    for text in ("née − 日本 \U0001f600", "a\nb", "نمی\u200cخواهم", ""):
        assert printable(text) == text
    assert printable("a\tb\u2028c\x1bd\ue000") == "a b c?d?"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
@pytest.mark.parametrize("make", [polished, reported])
def test_no_name_runs_or_breaks_the_page_in_a_browser(
    make, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Chromium runs the page's scripts: a probe of the test's tells what became of the page."""
    folder, _ = make(list(NAMES.values()), capfd)
    page = (folder / "report.html").read_text()
    probe = (
        "<script>addEventListener('load', () => { const width = document.documentElement; "
        "document.body.dataset.probe = [document.title !== 'ran', "
        "document.querySelectorAll('script').length, document.querySelectorAll('img').length, "
        "width.scrollWidth <= width.clientWidth, document.querySelectorAll('table').length > 0]"
        ".join(); })</script>"
    )
    assert page.count("</body>") == 1
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", f"{probe}</body>"))
    shown = subprocess.run(
        [
            *(str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1200,900", "--dump-dom", probed.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    ).stdout
    assert 'data-probe="true,1,0,true,true"' in shown, re.findall('data-probe="[^"]*"', shown)
