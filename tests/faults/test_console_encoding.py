"""What is printed arrives on any console, and a run never ends by what it prints."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evostep.cli import main
from evostep.cli.terminal import Steady

RESULTS = Path(__file__).resolve().parents[2] / "results" / "article-5k"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished comparison, whose figures are tested elsewhere."""
    monkeypatch.setattr("evostep.lab.report.figures.draw_figures", lambda results, history: [])
    shutil.copytree(RESULTS, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437", "utf-8"])
def test_a_report_is_printed_whatever_the_code_page(
    encoding: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, encoding=encoding))
    assert main(["report", str(results)]) == 0
    text = bytes_.getvalue().decode(encoding)
    assert "strongest control" in text
    assert ("\N{MINUS SIGN}" if encoding == "utf-8" else "-") in text
    assert "?" not in text
    assert "\N{MINUS SIGN}" in (results / "table.md").read_text(encoding="utf-8")


def test_an_error_is_printed_whatever_the_code_page(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(bytes_, encoding="ascii", errors="strict"))
    with pytest.raises(SystemExit, match="2"):
        main(["report", "Ergebnisse−ü"])
    assert b"'Ergebnisse-?'" in bytes_.getvalue()


class Broken(io.StringIO):
    encoding = "utf-8"

    def __init__(self, error: OSError, file: Any) -> None:
        super().__init__()
        self._error, self._file = error, file

    def write(self, text: str) -> int:
        raise self._error

    def fileno(self) -> int:
        return int(self._file.fileno())


@pytest.mark.parametrize("told", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_a_stream_that_breaks_is_written_to_no_more(told: OSError, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        stream = Steady(Broken(told, file))
        assert stream.write("some text") == 9
        stream.flush()
        file.write("lost")
    assert (tmp_path / "file").read_text() == ""
    assert stream.error is (None if isinstance(told, BrokenPipeError) else told)


def test_a_stream_that_was_closed_before_the_start_takes_all() -> None:
    stream = Steady(None)
    assert stream.write("some text") == 9
    stream.flush()
    assert not stream.isatty()


@pytest.mark.parametrize(
    ("shell", "code", "told"),
    [
        ("{} methods | head -1; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{} methods 2>&1 | head -c 1 >&-; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{} methods >&-", 0, ""),
        ("{} nothing 2>&-", 2, ""),
        ("{} methods > /dev/full", 1, "the output was cut off (No space left on device)"),
    ],
)
def test_a_closed_pipe_is_no_error(shell: str, code: int, told: str) -> None:
    if "/dev/full" in shell and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    command = shell.format(f"'{sys.executable}' -m evostep")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert told in done.stderr


@pytest.mark.parametrize("broken", ["evostep.cli.parser", "evostep.cli.terminal"])
def test_ctrl_c_as_it_starts_is_one_line(broken: str) -> None:
    program = f"""
import sys
class Stop:
    def find_spec(self, name, *_):
        if name == {broken!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from evostep.cli import main
raise SystemExit(main(["methods"]))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 130
    assert done.stderr == "evostep: stopped\n"
    assert done.stdout == ""
