"""What is to be put back is put back, wherever an interrupt comes (tests/faults: at any line)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evostep.interrupts import Undoing, finish


def interrupted_once(work: Callable[[], object]) -> Callable[[], object]:
    """Work that is interrupted the first time, half way."""
    calls: list[None] = []

    def half() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise KeyboardInterrupt
        work()

    return half


def test_what_is_finished_is_finished_and_the_interrupt_told() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        finish(interrupted_once(lambda: done.append(1)))
    assert done == [1]
    finish(lambda: done.append(2))
    assert done == [1, 2]


def test_an_interrupt_in_putting_back_finds_it_put_back() -> None:
    state = ["as it was"]

    def run() -> None:
        with Undoing(interrupted_once(lambda: state.__setitem__(0, "as it was"))):
            state[0] = "changed"

    with pytest.raises(KeyboardInterrupt):
        run()
    assert state == ["as it was"]


def test_whoever_is_further_out_puts_back_what_was_never_left() -> None:
    """An interrupt between the call of `__exit__` and its first line, or before the block."""
    order: list[str] = []
    with Undoing(lambda: order.append("outer")):
        Undoing(lambda: order.append("inner")).__enter__()
        inner = Undoing(lambda: order.append("innermost"))
        inner.__enter__()
    assert order == ["innermost", "inner", "outer"]
    inner.__exit__()  # as a generator does that is collected later
    assert order == ["innermost", "inner", "outer"]


def test_what_is_to_stay_stays() -> None:
    state = ["as it was"]
    with Undoing(lambda: state.__setitem__(0, "as it was")) as undoing:
        state[0] = "changed"
        undoing.leave_it()
    assert state == ["changed"]
