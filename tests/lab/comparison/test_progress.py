"""Progress: plain lines where the output is not a terminal, a bar where it is."""

import io
import re

import pytest
from rich.console import Console

from evostep.lab.comparison import progress
from evostep.lab.comparison.progress import show_progress


def console_to(file: io.StringIO, *, terminal: bool) -> Console:
    return Console(file=file, force_terminal=terminal, width=40)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    return clock


def test_lines_are_plain_whole_and_tell_share_and_time_left(clock: Clock) -> None:
    file = io.StringIO()
    text = "openai-es seed 3 epoch 12: [bold]train[/bold] 99.00%, a line longer than the console"
    with show_progress(1000, console_to(file, terminal=False)) as watch:
        watch.say("started")
        clock.now += 30
        watch.advance(250)
        watch.say(text)
        clock.now += 3600
        watch.say("an hour later")
    first, second, third = file.getvalue().splitlines()
    assert first == "[  0%] started"
    assert second == f"[ 25%, 1:30 left] {text}"
    assert third == "[ 25%, 3:01:30 left] an hour later"
    assert file.getvalue().replace("\n", "").isprintable()


def test_lines_come_at_most_every_ten_seconds(clock: Clock) -> None:
    file = io.StringIO()
    with show_progress(100, console_to(file, terminal=False)) as watch:
        for _ in range(100):
            watch.advance(1)
            watch.say("x")
            clock.now += 1
    assert len(file.getvalue().splitlines()) == 10
    assert file.getvalue().splitlines()[-1].startswith("[ 91%, 0:09 left]")


def test_a_warning_is_shown_at_once_on_one_line(clock: Clock) -> None:
    for terminal in (False, True):
        file = io.StringIO()
        with show_progress(100, console_to(file, terminal=terminal)) as watch:
            watch.say("x")
            watch.warn("3 scorings failed\n(ValueError: [a] b)")
            watch.warn("2 scorings failed")
        assert "3 scorings failed (ValueError: [a] b)" in file.getvalue()
        assert "2 scorings failed" in file.getvalue()


def test_more_than_was_expected_is_never_more_than_all(clock: Clock) -> None:
    file = io.StringIO()
    with show_progress(100, console_to(file, terminal=False)) as watch:
        watch.advance(250)
        clock.now += 5
        watch.say("x")
    assert file.getvalue() == "[100%, 0:00 left] x\n"


def test_nothing_to_do_is_all_done(clock: Clock) -> None:
    file = io.StringIO()
    with show_progress(0, console_to(file, terminal=False)) as watch:
        watch.say("x")
    assert file.getvalue() == "[100%, 0:00 left] x\n"


def test_a_terminal_gets_a_bar() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with show_progress(1000, console) as watch:
        watch.advance(500)
        watch.say("sgd [x] epoch 3")
    shown = file.getvalue()
    assert "\x1b[" in shown
    assert "100%" in shown
    assert "left" in shown
    assert "done" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_bar_and_times_are_there_however_narrow(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    with show_progress(1000, console) as watch:
        watch.advance(500)
        watch.say("openai-es-adam seed 3 epoch 12: train 99.00%, loss 0.123, fitness set 91.00%")
    last = file.getvalue().split("\r")[-1].splitlines()[0]
    last = last.replace("\x1b[2K", "")
    assert len(last) <= width
    assert "━" * 10 in last
    assert re.search(r"100% \d:\d\d:\d\d \S+ left", last)


def stop_in_the_middle(console: Console) -> None:
    with show_progress(1000, console) as watch:
        watch.say("sgd")
        raise KeyboardInterrupt


def test_the_bar_is_put_away_when_a_run_is_stopped() -> None:
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=120)
        with pytest.raises(KeyboardInterrupt):
            stop_in_the_middle(console)
        assert ("\x1b[?25h" in file.getvalue()) is terminal  # the cursor is shown again
        assert "done" not in file.getvalue()
