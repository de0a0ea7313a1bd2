"""The package as it is installed: what it imports, what it ships, what it pins."""

import compileall
import contextlib
import importlib
import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
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
    extras = {**PROJECT["optional-dependencies"], "ray": []}  # which `make` does not install
    found = [Requirement(line) for group in extras.values() for line in group]
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
    # those of a framework take long, and warn of what is not ours
    if name.rpartition(".")[2] not in ("__main__", "lightning", "skorch", "transformers"):
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from what it holds."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, capture_output=True, check=True)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as files:
        files.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    subprocess.run([*build, "-t", "wheel"], cwd=unpacked, capture_output=True, check=True)
    return folder


def test_the_source_holds_what_a_wheel_is_built_from(built: Path, wheel: zipfile.ZipFile) -> None:
    (again,) = built.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(wheel.namelist())
    (unpacked,) = (built / "unpacked").iterdir()
    assert unpacked.name == f"evostep-{evostep.__version__}"
    for name in ("README.md", "LICENSE", "CITATION.cff", "SECURITY.md", "tests/test_packaging.py"):
        assert (unpacked / name).is_file(), name


def test_one_version_is_told_everywhere() -> None:
    assert f"\nversion: {evostep.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{evostep.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_matrix_is_that_of_the_project() -> None:
    """Every Python of the classifiers, and the oldest torch that the requirement admits."""
    text = (ROOT / ".github/workflows/test.yml").read_text()
    matrix = yaml.safe_load(text)["jobs"]["versions"]["strategy"]["matrix"]
    told = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert matrix["python"] == told
    assert PROJECT["requires-python"] == f">={told[0]}"
    (torch,) = PROJECT["dependencies"]
    oldest = {one["torch"] for one in matrix["include"]} - {"newest"}
    assert {f"torch>={version.removesuffix('.0')}" for version in oldest} == {torch}


# Installed with nothing else: packages of this environment are linked into an empty one


def needed(name: str, extras: frozenset[str], found: set[str]) -> set[str]:
    """Add a package that is installed here, with all that it requires, to what was found."""
    name = canonicalize_name(name)
    if name not in found:
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            marker = requirement.marker
            wanted = [{"extra": extra} for extra in (*extras, "")]
            if marker is None or any(marker.evaluate(one) for one in wanted):
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    needed(requirement.name, frozenset(requirement.extras), found)
    return found


def link(name: str, site: Path) -> None:
    files = importlib.metadata.files(name) or []
    for top in {file.parts[0] for file in files} - {"..", "__pycache__", "bin"}:
        here = Path(str(importlib.metadata.distribution(name).locate_file(top)))
        if not (site / top).exists():
            (site / top).symlink_to(here)


def environment(folder: Path, wheel: Path, extra: str | None) -> Path:
    """Make an environment with the wheel, torch, and what an extra asks for; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = folder / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    groups = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(groups[extra] if extra else ())]
    found: set[str] = set()
    while lines:
        requirement = Requirement(lines.pop())
        if requirement.name == "evostep":
            lines += [line for name in requirement.extras for line in groups[name]]
        else:
            needed(requirement.name, frozenset(requirement.extras), found)
    for name in found:
        link(name, site)
    zipfile.ZipFile(wheel).extractall(site)
    compileall.compile_dir(site / "evostep", quiet=1)  # as an installer does
    return python


EXTRAS = runpy.run_path(str(ROOT / "tests" / "extras.py"))


def test_every_extra_has_a_check_of_its_own() -> None:
    """`tests/extras.py` installs each for real, and does what stands there."""
    assert EXTRAS["CHECKS"].keys() == PROJECT["optional-dependencies"].keys() | {EXTRAS["BARE"]}
    for code in EXTRAS["CHECKS"].values():
        compile(code, "check", "exec")


@pytest.mark.slow  # links thousands of files, and imports torch in five processes
@pytest.mark.skipif(sys.platform == "win32", reason="links files")
@pytest.mark.parametrize("extra", [None, "metrics", "cma", "lab"])
def test_each_extra_alone_brings_what_it_is_for(
    extra: str | None, built: Path, tmp_path: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    python = environment(tmp_path / "environment", wheel, extra)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=clean
        )

    done = run("-c", EXTRAS["CHECKS"][extra or EXTRAS["BARE"]])
    assert done.returncode == 0, done.stderr
    done = run("-m", "evostep", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    packages = json.loads(done.stdout)["packages"]
    missing = {name for name, facts in packages.items() if facts["state"] == "missing"}
    wanted = {name for name, facts in packages.items() if extra in facts["extras"]}
    assert not missing & wanted
    assert ("rich" in missing) is (extra != "lab")
    done = run("-m", "evostep", "evaluate", "--scores=s.csv", "--scores-are=logits")
    assert done.returncode == (0 if extra == "lab" else 2)
    assert ("pip install 'evostep[lab]'" in done.stderr) is (extra != "lab")
