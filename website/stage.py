"""Put the pages of the site together, for whatever builds them.

    python website/stage.py --out build/pages --source build/source --examples build/examples

The sources are Markdown that a code host shows as well: docs/ and some pages of the root. Here
links to what is no page become links to the repository, formulas between dollars become MathML
(browsers draw it without a script), and pages are added: the API, the commands, each example with
what it printed and drew and how long it took.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import posixpath
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import api
import latex2mathml.converter

from evostep.cli import main as evostep_main
from evostep.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/evostep/evostep"
OF_ROOT = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}

_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
# code, which is passed over, or a link, whose text may hold code
_LINK = re.compile(r"`[^`\n]+`|(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")
_DISPLAY = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])")


def staged() -> dict[str, str]:
    """Return the pages that exist as Markdown: path in the repository -> path in the site."""
    found = {f"docs/{p.name}": p.name for p in sorted((ROOT / "docs").glob("*.md"))}
    figures = sorted(p.relative_to(ROOT / "docs") for p in (ROOT / "docs/figures").iterdir())
    found |= {f"docs/{path.as_posix()}": path.as_posix() for path in figures}
    found |= {f"examples/{p.name}": f"examples/{p.stem}.md" for p in examples()}
    return found | OF_ROOT


def examples() -> list[Path]:
    """Return the scripts that have a page."""
    return sorted((ROOT / "examples").glob("*.py"))


def outside_code(change: Callable[[str], str], text: str) -> str:
    """Return the text with all but its code changed."""
    parts = _CODE.split(text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def relink(text: str, source: str, pages: dict[str, str]) -> str:
    """Return a page whose links lead to pages of the site, or to the repository.

    Args:
        text: Markdown.
        source: its path in the repository, which links are relative to.
        pages: what `staged` returns.

    Raises:
        SystemExit: a link leads to nothing.

    Example:
        >>> pages = {"docs/a.md": "a.md", "README.md": "index.md"}
        >>> relink("[a](docs/a.md#b), [x](https://x.org)", "README.md", pages)
        '[a](a.md#b), [x](https://x.org)'
    """

    def follow(link: re.Match[str]) -> str:
        target, hash_, anchor = (link[2] or "").partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in pages:
            here = posixpath.dirname(pages[source])
            return f"{link[1]}({posixpath.relpath(pages[path], here or '.')}{hash_}{anchor})"
        if not (ROOT / path).exists():
            raise SystemExit(f"{source}: the link to {link[2]} leads to nothing")
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{link[1]}({REPOSITORY}/{kind}/main/{path}{hash_}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(p if i % 2 else _LINK.sub(follow, p) for i, p in enumerate(parts))


def formulas(text: str) -> str:
    """Return a page whose TeX between dollars is MathML.

    Example:
        >>> formulas("`$a$` and $a$")[:24]
        '`$a$` and <span><math xm'
    """

    def convert(tex: str, display: str) -> str:
        return latex2mathml.converter.convert(tex, display=display).replace("\n", " ")

    def of_text(part: str) -> str:
        part = _DISPLAY.sub(lambda m: f"<div>{convert(m[1], 'block')}</div>", part)
        # in a span: a line that began with <math> would be a block of its own
        return _INLINE.sub(lambda m: f"<span>{convert(m[1], 'inline')}</span>", part)

    return outside_code(of_text, text)


def example_page(script: Path, ran: Path) -> str:
    """Return the page of an example: what it says of itself, the code, what it printed and drew.

    Args:
        script: the file.
        ran: where `website/examples.py` left its output; there need be nothing.
    """
    code = script.read_text()
    opening, _, rest = code.partition('"""')[2].partition('"""')
    title, _, about = opening.partition("\n")
    # a command that is indented in a docstring is a block of its own
    about = re.sub(r"(?m)^    (python .*)$", r"```console\n\1\n```", about.strip("\n"))
    about = re.sub(r"`(digits)\.py`", r"[`\1.py`](\1.md)", about)
    lines = [f"# {title.removesuffix('.')}", "", about, ""]
    output = ran / script.stem / "output.txt"
    if output.exists():
        lines += [f"## What it prints, in {took(script, ran)}", ""]
        lines += ["```text", output.read_text().rstrip(), "```", ""]
        for figure in sorted(output.parent.glob("*.png")):
            lines += [f"![{figure.stem}, as the script draws it]({script.stem}-{figure.name})", ""]
    else:
        lines += ["What it prints is not shown here: this site was built without running it.", ""]
    lines += ["## The script", "", f"[examples/{script.name}]", "", "```python"]
    lines[-3] += f"({REPOSITORY}/blob/main/examples/{script.name})"
    return "\n".join([*lines, rest.strip(), "```", ""])


def took(script: Path, ran: Path) -> str:
    """Return how long an example took, and where; a dash where it was not run."""
    file = ran / script.stem / "seconds.txt"
    return file.read_text().strip() if file.exists() else "-"


def examples_page(ran: Path) -> str:
    """Return the page that lists the examples, each with how long it took."""
    lines = ["# All examples", "", "`make docs` runs each as it stands.", ""]
    lines += ["| example | what it shows | takes |", "|:--|:--|:--|"]
    for script in examples():
        title = script.read_text().partition('"""')[2].partition("\n")[0].removesuffix(".")
        link = f"[{script.name}]({script.stem}.md)"
        lines.append(f"| {link} | {title} | {took(script, ran)} |")
    return "\n".join([*lines, ""])


def commands_page() -> str:
    """Return the page of the command line: what `--help` tells of each command."""
    lines = ["# Commands", "", "What `--help` tells of each; `--help-all` of `compare` tells more."]
    for name in COMMANDS:
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            evostep_main([name, "--help"])
        lines += ["", f"## {name}", "", "```text", told.getvalue().rstrip(), "```"]
    return "\n".join([*lines, ""])


def stage(out: Path, ran: Path) -> None:
    """Write all pages.

    Args:
        out: folder of the pages, replaced.
        ran: folder of the examples' output.
    """
    shutil.rmtree(out, ignore_errors=True)
    pages = staged()
    for source, target in pages.items():
        place = out / target
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".py"):
            place.write_text(example_page(ROOT / source, ran))
            for figure in (ran / place.stem).glob("*.png"):
                shutil.copy(figure, place.parent / f"{place.stem}-{figure.name}")
        elif source.endswith(".md"):
            place.write_text(formulas(relink((ROOT / source).read_text(), source, pages)))
        else:
            shutil.copy(ROOT / source, place)
    for name, page in api.PAGES.items():
        place = out / "api" / f"{name}.md"
        place.parent.mkdir(exist_ok=True)
        place.write_text(api.text(page))
    (out / "commands.md").write_text(commands_page())
    (out / "examples/index.md").write_text(examples_page(ran))
    shutil.copytree(ROOT / "website/assets", out / "assets")


def stage_source(out: Path) -> None:
    """Write the package as mkdocstrings reads it, which knows examples under "Examples" alone.

    Args:
        out: folder of the package, replaced.
    """
    shutil.rmtree(out, ignore_errors=True)
    for path in (ROOT / "src").rglob("*.py"):
        place = out / path.relative_to(ROOT / "src")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(re.sub(r"(?m)^( +)Example:$", r"\1Examples:", path.read_text()))


def main() -> None:
    """Read the options, write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pages, replaced")
    parser.add_argument("--examples", type=Path, required=True, help="output of the examples")
    parser.add_argument("--source", type=Path, required=True, help="the package, for the API")
    args = parser.parse_args()
    stage(args.out, args.examples)
    stage_source(args.source)


if __name__ == "__main__":
    main()
