"""What evolution did before, case by case, to 3e-6: any change of behaviour must be meant.

Meant ones are written down anew, as the head of `record.py` tells.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
KNOWN: dict[str, Any] = json.loads((HERE / "values.json").read_text())


def load_record() -> ModuleType:
    spec = importlib.util.spec_from_file_location("behaviour_record", HERE / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORD = load_record()
CASES: dict[str, Callable[[], Any]] = dict(RECORD.cases())


def test_every_known_case_is_still_one() -> None:
    assert len(KNOWN) > 60
    assert KNOWN.keys() <= CASES.keys()


@pytest.mark.parametrize("name", KNOWN)
def test_evolution_does_what_it_did(name: str) -> None:
    assert_near(RECORD.in_short(RECORD.observe(CASES[name])), KNOWN[name])


def assert_near(found: Any, known: Any) -> None:
    """Compare numbers to 3e-6, all else exactly: processors differ by 1.5e-6."""
    if isinstance(known, dict):
        assert found.keys() == known.keys()
        for key in known:
            assert_near(found[key], known[key])
    elif isinstance(known, str):
        assert found == known
    else:
        assert found == pytest.approx(known, rel=3e-6, abs=3e-6)


def test_a_small_change_is_noticed() -> None:
    known = {"weights": [1.0, 2.0], "accepted": [True, False], "raised": "ValueError"}
    assert_near({**known, "weights": [1.0 + 1e-7, 2.0]}, known)
    for change in ({"weights": [1.0 + 1e-5, 2.0]}, {"accepted": [True]}, {"raised": "TypeError"}):
        with pytest.raises(AssertionError):
            assert_near({**known, **change}, known)
