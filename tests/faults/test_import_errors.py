"""A package that is broken within is not told as "not installed"."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evostep import CMAES, Evolution, Span
from evostep.cli import main
from evostep.errors import needs_package


def span(folder: Path) -> object:
    model = torch.nn.Linear(2, 2)
    (folder / "w.safetensors").write_bytes(b"")
    space = Span(checkpoints=[str(folder / "w.safetensors")])
    return Evolution(model, CMAES(0.1), space=space).evolve(lambda: 0.0)


NEEDS: dict[str, Callable[[Path], object]] = {
    "cma": lambda _: Evolution({"w": torch.ones(2)}, CMAES(0.1)).evolve(lambda: 0.0),
    "safetensors": span,
}


class Absent:
    """Finds no package of this name."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def hide(package: str) -> None:
        for name in list(sys.modules):
            if f"{name}.".startswith(f"{package}."):
                monkeypatch.delitem(sys.modules, name)

    return hide


@pytest.mark.parametrize("package", NEEDS)
@pytest.mark.parametrize("how", ["absent", "a dependency is missing", "broken"])
def test_what_is_told(
    package: str,
    how: str,
    hidden: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    hidden(package)
    if how == "absent":
        monkeypatch.setattr(sys, "meta_path", [Absent(package), *sys.meta_path])
    else:
        (tmp_path / package).mkdir()
        line = "import no_such_thing" if how != "broken" else "raise ImportError('libx.so.1: gone')"
        (tmp_path / package / "__init__.py").write_text(line)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"needs the package {package}, which is") as told:
        NEEDS[package](tmp_path)
    text = str(told.value)
    assert "\n" not in text
    assert ("not installed: pip install 'evostep[" in text) == (how == "absent")
    if how == "a dependency is missing":
        assert "cannot be imported (ModuleNotFoundError: No module named 'no_such_thing')" in text
    if how == "broken":
        assert "cannot be imported (ImportError: libx.so.1: gone)" in text


def test_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What needs its parser says so; what needs nothing is answered."""

    def broken(name: str, *_: object, **__: object) -> object:
        if name == "evostep.cli.parser":
            raise ImportError("libyaml.so: gone", name="yaml._yaml")
        return imported(name, *_, **__)  # type: ignore[arg-type]

    imported = __import__
    monkeypatch.setattr("builtins.__import__", broken)
    with pytest.raises(SystemExit, match="2"):
        main(["compare"])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"needs the package yaml, .*libyaml\.so: gone", line)
    for command in (["methods"], ["list", "-v"], ["--json", "list", "data"]):
        assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["digits"]
    for wrong, told in ((["list", "metods"], "did you mean methods"), (["list", "--x"], "--x")):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


@pytest.mark.parametrize("package", ["pyarrow", "matplotlib"])
def test_a_package_that_a_command_needs(
    package: str,
    hidden: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hidden(package)
    hidden("evostep.lab.report.figures") if package == "matplotlib" else None
    monkeypatch.setattr(sys, "meta_path", [Absent(package), *sys.meta_path])
    (tmp_path / "s.csv").write_text("score_a,score_b,label\n1,2,a\n2,1,b\n")
    command = ["evaluate", f"--scores={tmp_path / 's.csv'}", "--scores-are=logits"]
    with pytest.raises(SystemExit) as left:
        main(command if package == "pyarrow" else ["report", str(tmp_path)])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"needs the package {package}, which is not installed: pip install 'evostep[lab" in told


def test_a_submodule_that_is_missing_is_a_broken_package() -> None:
    error = ModuleNotFoundError("No module named 'cma.x'", name="cma.x")
    assert "installed but cannot be" in str(needs_package("CMAES", "cma", "evostep[cma]", error))
