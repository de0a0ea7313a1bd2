"""What becomes of a page on its way to the site."""

import doctest
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stage(website: Any) -> Any:
    pytest.importorskip("latex2mathml")
    return website("stage")


def test_the_examples_of_the_scripts_run(stage: Any, website: Any) -> None:
    for module in (stage, website("api")):
        done = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
        assert done.attempted > 0
        assert done.failed == 0


@pytest.mark.parametrize(
    ("source", "text", "relinked"),
    [
        ("docs/a.md", "[x](b.md#c)", "[x](b.md#c)"),
        ("docs/a.md", "[x](#c) and `[x](y)`", "[x](#c) and `[x](y)`"),
        ("docs/a.md", "![x](figures/x.png)", "![x](figures/x.png)"),
        ("CONTRIBUTING.md", "[`x`](docs/b.md)", "[`x`](b.md)"),
        ("docs/a.md", "[x](../CONTRIBUTING.md)", "[x](contributing.md)"),
        ("docs/a.md", "[x](../e/f.py)", "[x](e/f.md)"),
        ("docs/a.md", "[x](../README.md)", "[x](REPOSITORY/blob/main/README.md)"),
        ("docs/a.md", "[x](../tests)", "[x](REPOSITORY/tree/main/tests)"),
        ("docs/a.md", "```\n[x](nowhere.md)\n```", "```\n[x](nowhere.md)\n```"),
    ],
)
def test_links_lead_to_pages_or_to_the_repository(
    stage: Any, source: str, text: str, relinked: str
) -> None:
    pages = {
        "docs/a.md": "a.md",
        "docs/b.md": "b.md",
        "docs/figures/x.png": "figures/x.png",
        "CONTRIBUTING.md": "contributing.md",
        "e/f.py": "e/f.md",
    }
    assert stage.relink(text, source, pages) == relinked.replace("REPOSITORY", stage.REPOSITORY)


def test_a_link_to_nothing_is_refused(stage: Any) -> None:
    with pytest.raises(SystemExit, match=r"docs/a.md: the link to gone.md leads to nothing"):
        stage.relink("[x](gone.md)", "docs/a.md", {"docs/a.md": "a.md"})


def test_dollars_of_code_and_of_prose_are_no_formulas(stage: Any) -> None:
    for text in ("`$x$`", "```\n$x$\n```", "costs $5 and $6", "a$b$c"):
        assert stage.formulas(text) == text
    assert "<mi>" in stage.formulas("so $x_i$, and")
    assert 'display="block"' in stage.formulas("$$\nx\n$$")


def test_an_example_shows_what_it_printed_and_drew(stage: Any, tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text('"""Do one thing.\n\n    python one.py\n\nWell.\n"""\n\nprint(1)\n')
    assert "What it prints is not shown here" in stage.example_page(script, tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/output.txt").write_text("1\n")
    (tmp_path / "one/line.png").write_bytes(b"")
    (tmp_path / "one/seconds.txt").write_text("7 s (a processor)\n")
    text = stage.example_page(script, tmp_path)
    assert text.startswith("# Do one thing\n\n```console\npython one.py\n```\n\nWell.")
    assert "## What it prints, in 7 s (a processor)\n\n```text\n1\n```" in text
    assert "](one-line.png)" in text
    assert text.endswith("```python\nprint(1)\n```\n")


def test_the_list_of_examples_tells_what_each_takes(stage: Any, tmp_path: Path) -> None:
    (tmp_path / "own_metric").mkdir()
    (tmp_path / "own_metric/seconds.txt").write_text("7 s (a processor)\n")
    rows = [line for line in stage.examples_page(tmp_path).splitlines() if "](" in line]
    assert len(rows) == len(stage.examples())
    (own,) = (row for row in rows if "own_metric.md" in row)
    assert own.endswith("| 7 s (a processor) |")
    assert sum(row.endswith("| - |") for row in rows) == len(rows) - 1
