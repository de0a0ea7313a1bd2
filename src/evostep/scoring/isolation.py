"""Scoring leaves no trace: modes, buffers, attributes and random streams are put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evostep.genome.memory import distinct
from evostep.interrupts import Undoing
from evostep.scoring.attributes import Attributes, derive_weights


def _live_devices() -> list[Any]:
    return [device for device in (torch.cuda, torch.xpu) if device.is_initialized()]


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put back the global random streams of torch (all devices), Python and NumPy on leaving.

    Example:
        >>> before = torch.get_rng_state()
        >>> with preserved_rng():
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    with Undoing(_snapshot()):
        yield


def _snapshot() -> Callable[[], None]:
    """Return what puts the global random streams back where they stand now."""
    numpy: Any = sys.modules.get("numpy")
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    device_states = [(device, device.get_rng_state_all()) for device in _live_devices()]
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    numpy_state = numpy.random.get_state() if numpy is not None else None

    def put_back() -> None:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        for device, state in device_states:
            device.set_rng_state_all(state)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)
        if numpy_state is not None:
            numpy.random.set_state(numpy_state)

    return put_back


class Streams:
    """Random streams beside the global ones, seeded once, that go on where they were left.

    Example:
        >>> streams, drawn = Streams(0), []
        >>> for _ in range(2):
        ...     with streams.current():
        ...         drawn.append(float(torch.rand(())))
        >>> drawn[0] != drawn[1]
        True
    """

    def __init__(self, seed: int) -> None:
        self._go_on: Callable[[], None] = partial(seed_everything, seed)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Draw from these within."""
        with preserved_rng():
            self._go_on()
            try:
                yield
            finally:
                self._go_on = _snapshot()


def seed_everything(seed: int) -> None:
    """Seed the global streams of torch, Python and (where it is loaded) NumPy."""
    # torch.manual_seed would also change the seed with which a device that is not in use yet will
    # start, which cannot be put back; and it takes a millisecond, being slow to say so
    torch.default_generator.manual_seed(seed % 2**63)
    for device in _live_devices():
        device.manual_seed_all(seed % 2**63)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed % 2**63)
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


Modes = Sequence[tuple[nn.Module, bool]]


def modes_of(model: nn.Module) -> Modes:
    """Return each module with whether it is in training mode."""
    return [(module, module.training) for module in model.modules()]


def set_modes(modes: Modes) -> None:
    """Put the modes back."""
    for module, training in modes:
        if module.training != training:  # setting an attribute of a module is slow
            module.training = training


@contextmanager
def listening(hook: Callable[..., Any], *modules: nn.Module) -> Iterator[None]:
    """Let a forward hook of these modules hear within."""
    handles: list[Any] = []

    def leave() -> None:
        for handle in handles:
            handle.remove()

    with Undoing(leave):
        for module in modules:
            handles.append(module.register_forward_hook(hook))
        yield


class ModuleState:
    """Modes, buffers, attributes and requires_grad of a model, to be put back as they were.

    Parameters' values are not kept here: they are the center's. Neither are those of the tensors
    in `moving`, which a space evolves.
    """

    def __init__(self, model: nn.Module, moving: Collection[int] = ()) -> None:
        self._model, self._moving = model, moving
        self._attributes = Attributes(model, moving)
        self._modes = modes_of(model)
        self._grads = [(p, p.requires_grad) for p in model.parameters()]
        self._buffers = [(module, dict(module._buffers)) for module in model.modules()]
        self._values: list[tuple[Tensor, Tensor]] = [
            (distinct(buffer), distinct(buffer).detach().clone())
            for buffer in model.buffers()
            if id(buffer) not in moving
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, buffers that were replaced, filled in or added included."""
        set_modes(self._modes)
        for parameter, requires_grad in self._grads:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        for module, buffers in self._buffers:
            if not buffers and not module._buffers:
                continue
            module._buffers.update(buffers)
            for name in module._buffers.keys() - buffers.keys():
                del module._buffers[name]
        for buffer, value in self._values:
            buffer.copy_(value)
        self._attributes.restore()

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        """Return copies of what the buffers hold now, not of what would be put back."""
        return [buffer.detach().clone() for buffer, _ in self._values]

    @torch.no_grad()
    def write(self, values: Sequence[Tensor]) -> None:
        """Fill the buffers with what `values` returned; `restore` still puts back what it did."""
        for (buffer, _), value in zip(self._values, values, strict=True):
            buffer.copy_(value)

    @torch.no_grad()
    def hold(self) -> None:
        """Take what the buffers hold now as what is to be put back."""
        for buffer, value in self._values:
            value.copy_(buffer)

    def hold_attributes(self) -> None:
        """Take the modules' attributes as they are now, which a user may have set."""
        self._attributes = Attributes(self._model, self._moving)

    def derive_weights(self) -> None:
        """Make weights that hooks derive those of the parameters as they stand."""
        derive_weights(self._model)
