"""What tests of the sources share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep decoded images away from the user's cache, and the user's data from the tests."""
    monkeypatch.setenv("EVOSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVOSTEP_DATA", raising=False)
    return tmp_path / "cache"
