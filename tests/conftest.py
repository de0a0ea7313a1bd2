"""Settings that every test runs under."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# One thread: tests run beside each other, and sums come out in the same order everywhere.
torch.set_num_threads(1)

# The first call into torch takes long, so a deadline per example would be a matter of luck. In
# continuous integration the examples are the same in each run; elsewhere new ones are drawn.
hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same global stream, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep decoded data out of the user's cache, and the user's cache out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOSTEP_CACHE", str(folder))
        yield folder
