"""Progress on a terminal alone, with the gain and a share that reaches its end."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from evostep import polish
from evostep.lab.polish.progress import show_search


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_it_is_shown_on_a_terminal_alone(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with show_search(fraction=True) as watch:
        watch(0.5, 0.0512)
    if stream.isatty():
        assert "polishing" in stream.getvalue()
        assert "gain where it searches +5.1" in stream.getvalue()
    else:
        assert stream.getvalue().strip() == ""


def test_polish_tells_how_far_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    outputs = torch.randn(120, 2, generator=generator)
    outputs[labels == 1, 1] += 2.0
    outputs[:, 0] += 2.0
    told: list[tuple[float, float]] = []
    settings = {"folds": 3, "budget": 336 * 3, "draws": 200}
    watched = polish(
        None, (outputs, labels), "macro-f1", watch=lambda *now: told.append(now), **settings
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
    assert max(gain for _, gain in told) > 0
    plain = polish(None, (outputs, labels), "macro-f1", **settings)
    assert plain.as_dict() == watched.as_dict()  # watching changes nothing
