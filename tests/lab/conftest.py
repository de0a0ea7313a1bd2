"""What tests of the lab share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evostep.errors import InputError
from evostep.lab.data.images import load_data


@pytest.fixture
def refused() -> Callable[..., None]:
    """Check that loading fails in one line that matches."""

    def check(told: str, name: str, *args: Any, **options: Any) -> None:
        with pytest.raises(InputError, match=told) as caught:
            load_data(name, *args, **options)
        assert "\n" not in str(caught.value)

    return check
