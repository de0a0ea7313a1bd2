"""The package as it is installed: what it imports, what it ships, what it pins."""

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import evostep

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "evostep"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


STAGES = (  # one fresh process does these one after the other
    "import evostep, evostep.errors, evostep.lab.options",
    "import torch",
    "evostep.noise.draw; evostep.scoring; evostep.OpenAIES",
    "from evostep import *",
)


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """The top-level modules that a fresh process has imported after each of the stages."""
    told = "; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    program = "\n".join(["import json, sys", *(stage + told for stage in STAGES)])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture
def imported(loaded: list[set[str]]) -> set[str]:
    """The top-level modules that all public names add to those of `import torch`."""
    return loaded[3] - loaded[1]


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    found = [Requirement(line) for group in extras for line in group]
    found += [Requirement(line) for line in PROJECT["dependencies"]]
    return [requirement for requirement in found if requirement.name != "evostep"]


def test_importing_the_library_imports_torch_alone(imported: set[str]) -> None:
    # What torch itself needs may come in later than `import torch`, through its own modules.
    torchs = {
        Requirement(line).name.replace("-", "_").lower()
        for line in importlib.metadata.requires("torch") or ()
        if "extra ==" not in line
    }
    foreign = {name for name in imported if name not in sys.stdlib_module_names} - torchs
    assert not foreign, f"evostep also imports {sorted(foreign)}"


def test_the_experiments_extras_are_not_imported(imported: set[str]) -> None:
    heavy = {"cma", "jsonargparse", "matplotlib", "pyarrow", "rich", "safetensors", "scipy"}
    heavy |= {"sklearn", "statsmodels", "torchmetrics", "torchvision", "jinja2", "PIL", "yaml"}
    assert not imported & heavy


def test_version_is_the_installed_one() -> None:
    assert evostep.__version__ == importlib.metadata.version("evostep")


def test_torch_is_the_only_dependency() -> None:
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["torch"]


def test_the_command_exists() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="evostep")
    assert callable(script.load())


def test_torch_waits_until_a_name_is_asked_for(loaded: list[set[str]]) -> None:
    assert "evostep" in loaded[0]
    assert "torch" not in loaded[0]


def test_names_and_modules_are_found_as_attributes() -> None:
    assert set(evostep.__all__) <= set(dir(evostep))
    assert not hasattr(evostep, "nothing")
    assert not hasattr(evostep, "_nothing")


EACH_FIRST = """
import importlib, pkgutil, sys, torch, evostep
found = [m.name for m in pkgutil.walk_packages(evostep.__path__, "evostep.")]
for name in found:
    if name != "evostep.__main__":
        for other in [other for other in sys.modules if other.split(".")[0] == "evostep"]:
            del sys.modules[other]
        importlib.import_module(name)
"""


@pytest.mark.slow  # test_house shows by the source that there is no circle
def test_every_module_can_be_the_first_to_be_imported() -> None:
    command = [sys.executable, "-W", "error", "-c", EACH_FIRST]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    public = importlib.import_module("evostep._public")
    assert {name for name in vars(public) if name[0] != "_"} | {"__version__"} == set(
        evostep.__all__
    )
    assert [name for name in evostep.__all__ if not hasattr(evostep, name)] == []
    assert len(set(evostep.__all__)) == len(evostep.__all__)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_ships_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    files = {
        f"evostep/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert "evostep/py.typed" in shipped
    assert shipped == files


def test_the_wheel_carries_licence_and_command(wheel: zipfile.ZipFile) -> None:
    names = {name.partition(".dist-info/")[2]: name for name in wheel.namelist()}
    assert "Apache License" in wheel.read(names["licenses/LICENSE"]).decode()
    assert "evostep = evostep.cli:main" in wheel.read(names["entry_points.txt"]).decode()


def test_constraints_pin_every_requirement_within_its_range() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} has no line in constraints.txt"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} is not {requirement}"
