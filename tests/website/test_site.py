"""What is built: every link leads somewhere, nothing is asked of another host, and all is there."""

import functools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import evostep
from evostep.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://github.com/evostep/evostep/"


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value for name, value in attrs if value is not None}
        self.anchors |= {told[name] for name in ("id", "name") if name in told}
        leads = tag == "link" and told.get("rel") in ("prev", "next", "canonical")
        if leads or (tag == "a" and "href" in told):
            self.links.append(told["href"])
        else:
            self.loads += [told[name] for name in ("src", "href", "data", "poster") if name in told]


@functools.cache
def page(path: Path) -> Page:
    return Page(path)


def pages(site: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(site.rglob("*.html")):
        # what is missing is told from any depth: its links begin at the root
        if path.name != "404.html":
            yield path, page(path)


def dead(path: Path, link: str) -> str | None:
    """Why a link leads nowhere; None where it does not."""
    target, _, anchor = link.partition("#")
    if re.match(r"(https?|mailto):", target):
        if not target.startswith(REPOSITORY):
            return None  # of others; whether they are there is theirs
        kept = re.fullmatch(r"(?:blob|tree)/main/(.+)", target.removeprefix(REPOSITORY))
        return None if kept is None or (ROOT / kept[1]).exists() else "not in the repository"
    found = path if not target else (path.parent / unquote(target.partition("?")[0])).resolve()
    found = found / "index.html" if found.is_dir() else found
    if not found.is_file():
        return "no such file"
    if anchor and found.suffix == ".html" and unquote(anchor) not in page(found).anchors:
        return "no such anchor"
    return None


def test_every_link_leads_somewhere(site: Path) -> None:
    told = [
        f"{path.relative_to(site)}: {link}: {why}"
        for path, found in pages(site)
        for link in {*found.links, *found.loads}
        if (why := dead(path, link)) is not None
    ]
    assert told == []


def test_dead_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<a id="here"></a>')
    here = tmp_path / "a.html"
    here.write_text("")
    for link in ("b.html", "b.html#here", "https://x.org/y", f"{REPOSITORY}blob/main/README.md"):
        assert dead(here, link) is None
    for link in ("c.html", "b.html#there", "#here", f"{REPOSITORY}blob/main/READYOU.md"):
        assert dead(here, link) is not None


def test_nothing_is_asked_of_another_host(site: Path) -> None:
    """Neither scripts nor fonts nor pictures: it works from a folder, without a network."""
    loaded = {url for _, found in pages(site) for url in found.loads}
    assert {url for url in loaded if re.match(r"(\w+:)?//", url)} == set()
    for path in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*\)|@import", path.read_text()) == []
    assert (site / "search" / "search_index.js").is_file()  # a script: read without a server, too


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    for path in (ROOT / "docs").glob("*.md"):
        built = (site / path.name).with_suffix(".html")
        assert built.is_file(), path.name
        assert f'href="{built.name}"' in (site / "index.html").read_text(), f"{path.name}: no nav"


def test_lists_and_tables_are_read_as_such(site: Path) -> None:
    """A code host reads a list or table without a blank line before it; MkDocs does not."""
    for path, _ in pages(site):
        for text in re.findall(r"<p>(.*?)</p>", path.read_text(), re.DOTALL):
            assert not re.search(r"\n(?:[-*] |\d+\. |\|.*\|$)", text, re.MULTILINE), (path, text)


def test_formulas_are_drawn_without_a_script(site: Path) -> None:
    text = (site / "strategies.html").read_text()
    assert text.count("<math ") > 30
    prose = re.sub(r"<(pre|code|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    assert "$" not in prose
    assert not re.search(r"\\[a-z]+", prose)


def test_every_public_name_stands_on_a_page_of_the_api(site: Path, website: Any) -> None:
    told = website("api").PAGES
    listed = {path.rpartition(".")[2] for one in told.values() for path in one.names}
    assert {*evostep.__all__, "DecisionClassifier", "evaluate"} - {"__version__"} <= listed
    for name, one in told.items():
        text = (site / "api" / f"{name}.html").read_text()
        for path in one.names:
            (heading,) = re.findall(rf'<h2 id="evostep.{path}".*?</h2>', text, re.DOTALL)
            assert website("api").place_of(path) in heading
            if path.rpartition(".")[2] not in ("NoiseStrategy", "Step"):
                body = text.partition(heading)[2].partition("<h2")[0]
                assert "&gt;&gt;&gt;" in body, f"{path}: no example on its page"


def test_every_command_tells_its_options(site: Path) -> None:
    text = (site / "commands.html").read_text()
    for name in COMMANDS:
        body = text.partition(f'<h2 id="{name}"')[2].partition("<h2")[0]
        assert f"usage: evostep {name}" in body
        assert "--help" in body


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_every_example_has_a_page_with_its_script(site: Path, script: Path) -> None:
    text = (site / "examples" / f"{script.stem}.html").read_text()
    plain = re.sub(r"<[^>]+>", "", text)
    assert "from __future__ import annotations" in plain
    (first, *_) = re.findall(r"^def \w+", script.read_text(), flags=re.M)
    assert first in plain
