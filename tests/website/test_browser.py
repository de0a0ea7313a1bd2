"""The site in a real browser: drawn, searched, on a phone, from a server and from a folder."""

import functools
import http.server
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--virtual-time-budget=10000"),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    return found


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and remembers what it could not."""

    missed: list[str] = []  # noqa: RUF012 - of the one server of these tests

    def do_GET(self) -> None:
        if self.path == "/wait":  # the browser's virtual time stands still meanwhile
            time.sleep(0.2)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        if len(args) > 1 and not str(args[1]).startswith(("2", "3")):
            self.missed.append(str(args[0]))


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def opened(chromium: str, url: str, profile: Path, width: int = 1280) -> str:
    """Open a page, and return its document as it is when its scripts have run."""
    command = [chromium, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900"]
    done = subprocess.run(
        [*command, "--dump-dom", url], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # what a script or a missing file complains of
    assert re.findall(r".*CONSOLE.*", done.stderr) == []
    return done.stdout


@pytest.mark.parametrize("page", ["index.html", "strategies.html", "api/strategies.html"])
def test_a_page_is_drawn_and_complains_of_nothing(
    chromium: str, served: str, page: str, tmp_path: Path
) -> None:
    Quiet.missed.clear()
    document = opened(chromium, f"{served}/{page}", tmp_path)
    assert 'class="js' in document  # the scripts have run
    assert "<article" in document
    assert Quiet.missed == []


def test_the_search_finds_a_method_from_a_folder(chromium: str, site: Path, tmp_path: Path) -> None:
    document = opened(chromium, f"{site.as_uri()}/index.html?q=Salimans", tmp_path)
    assert "strategies.html" in "".join(re.findall(RESULT, document))


def test_the_search_finds_a_method_from_a_server(
    chromium: str, served: str, site: Path, tmp_path: Path
) -> None:
    # there the search is a thread of its own, for which virtual time does not wait
    (site / "search-it.html").write_text(SEARCH)
    (site / "wait").write_text("")
    document = opened(chromium, f"{served}/search-it.html", tmp_path)
    for name in ("search-it.html", "wait"):
        (site / name).unlink()
    assert "strategies.html" in "".join(re.findall(RESULT, document))


RESULT = r'<a href="([^"]*)" class="md-search-result__link"'
SEARCH = """<!doctype html><body><iframe id=f src="index.html?q=Salimans"></iframe><script>
const found = () => document.getElementById("f").contentDocument
  .querySelector(".md-search-result__list").innerHTML;
onload = async () => {
  for (let i = 0; i < 100 && !found().includes("<a "); i++) await fetch("/wait");
  document.body.innerHTML = found();
};
</script>"""
MEASURE = """<!doctype html><body><iframe id=f width=375 height=800></iframe><script>
const frame = document.getElementById("f"), pages = PAGES, told = [];
const next = () => {
  const page = pages.shift();
  if (!page) { document.title = "done: " + told.join(" "); return; }
  frame.onload = () => setTimeout(() => {
    const { scrollWidth } = frame.contentDocument.documentElement;
    told.push(page + "=" + scrollWidth);
    next();
  }, 200);
  frame.src = page;
};
next();
</script>"""


def test_no_page_is_wider_than_a_phone(
    chromium: str, served: str, site: Path, tmp_path: Path
) -> None:
    names = [str(path.relative_to(site)) for path in site.rglob("*.html") if path.stem != "404"]
    names.remove("results.html")  # the last, for its tables are the widest
    (site / "measure-width.html").write_text(
        MEASURE.replace("PAGES", str([*names, "results.html"]))
    )
    document = opened(chromium, f"{served}/measure-width.html", tmp_path)
    (site / "measure-width.html").unlink()
    told = re.findall(r"([\w/.-]+\.html)=(\d+)", document.partition("done: ")[2])
    assert len(told) == len(names) + 1
    assert [page for page, width in told if int(width) > 375] == []
