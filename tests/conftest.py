"""Settings that every test runs under."""

import functools
import os
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Let files of tests stay in memory: no power cut is to be survived, and syncing takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def digits_read_once() -> Iterator[None]:
    """Read scikit-learn's digits once; each reading of its text file takes a third of a second."""
    import sklearn.datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sklearn.datasets, "load_digits", functools.cache(sklearn.datasets.load_digits)
        )
        yield


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one figure of a report, the quickest: each has tests of its own."""
    from evostep.lab.report.figures import FIGURES

    for name in FIGURES.keys() - {"gap"}:
        monkeypatch.delitem(FIGURES, name)


class Ledger(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once, of those made while it watches."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._living = 0
        self._holders: Counter[int] = Counter()  # tensors by the address of their storage
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls[func] += 1
        if isinstance(out, torch.Tensor) and not any(out is arg for arg in args):
            storage = out.untyped_storage()
            self._hold(storage.data_ptr(), storage.nbytes(), 1)
            weakref.finalize(out, self._hold, storage.data_ptr(), storage.nbytes(), -1)
        return out

    def _hold(self, address: int, size: int, change: int) -> None:
        before = self._holders[address] > 0
        self._holders[address] += change
        self._living += size * ((self._holders[address] > 0) - before)
        self.peak = max(self.peak, self._living)


@pytest.fixture
def new_ledger() -> type[Ledger]:
    return Ledger


def pytest_configure(config: pytest.Config) -> None:
    """Let tests take a constant for a fitness: tests/faults holds the warning to its word."""
    config.addinivalue_line(
        "filterwarnings", "ignore:.*exactly as the weights they come from:UserWarning"
    )
