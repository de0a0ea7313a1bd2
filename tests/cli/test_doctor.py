"""``evostep doctor``: what is found, and what to do about the rest."""

import contextlib
import json
from typing import Any

import pytest

from evostep.cli import main
from evostep.cli.doctor import describe

FINE = {"version": "2.14", "least": "2.5", "state": "fine", "why": "", "cure": "", "extras": []}
MISSING = FINE | {"version": None, "state": "missing", "cure": "pip install 'evostep[lab]'"}
FOUND: dict[str, Any] = {
    "evostep": "1.2",
    "python": "3.12",
    "platform": "Linux x86_64",
    "packages": {"torch": FINE},
    "devices": {"cpu": "C", "cores": 4, "threads": 1, "gpus": [], "built for": "CPU"},
    "data": {"cifar10": {"found": None, "cure": "give it"}, "digits": {"found": "/d"}},
    "places": {"EVOSTEP_DATA": None},
    "problems": [],
    "usable": True,
}


def test_it_tells_all_that_is_found() -> None:
    assert list(describe(FOUND)) == [
        "evostep 1.2, torch 2.14, Python 3.12",
        "  on Linux x86_64",
        "cpu      C: 4 cores, 1 thread",
        "gpu      none (torch for CPU)",
        "data     cifar10: not found: give it",
        "data     digits: /d",
        "place    EVOSTEP_DATA: not set",
        "all is well",
    ]
    assert "package  torch 2.14 (>= 2.5): fine" in describe(FOUND, everything=True)


def test_what_is_missing_comes_with_one_command_for_all_of_it() -> None:
    packages = {"torch": FINE, "rich": MISSING, "jinja2": MISSING}
    *_, missing, last = describe(FOUND | {"packages": packages})
    assert missing == "missing  rich, jinja2: pip install 'evostep[lab]'"
    assert last == "what is installed is well"


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["torch 1.0 is too old: do"], 1)])
def test_a_problem_is_exit_code_1(
    problems: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = FOUND | {"problems": problems}
    monkeypatch.setattr("evostep.lab.diagnosis.diagnose", lambda: found)
    for more in ([], ["--json"]):
        with contextlib.ExitStack() as stack:
            if code:
                stack.enter_context(pytest.raises(SystemExit, match=f"{code}"))
            assert main(["doctor", *more]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == found
    assert [line.removeprefix("problem  ") for line in lines if "problem" in line] == problems
