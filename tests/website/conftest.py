"""The site, built once, strictly, in a folder of its own."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("latex2mathml", "material", "mkdocs", "mkdocstrings")


@pytest.fixture(scope="session")
def website() -> Any:
    """Import a script of website/ by its name."""

    def load(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(ROOT / "website"))
            return importlib.import_module(name)

    return load


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the site is not built: no {', '.join(missing)}; pip install 'evostep[docs]'")
    folder = tmp_path_factory.mktemp("website")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    places = ["--out", "build/pages", "--source", "build/source", "--examples", "build/examples"]
    for command in (
        [sys.executable, str(ROOT / "website/stage.py"), *places],
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"],
    ):
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "build" / "site"
