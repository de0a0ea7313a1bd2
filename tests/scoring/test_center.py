"""The center: what tells its weights from others; how it moves stands in tests/test_phase.py."""

from __future__ import annotations

import torch

from evostep.scoring.center import fingerprint


def test_a_fingerprint_tells_one_bit() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        w = torch.randn(50).to(dtype)
        other = w.clone()
        bits = other.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
        bits[17] ^= 1
        assert fingerprint({"w": w}) != fingerprint({"w": other})
        assert fingerprint({"w": w}) == fingerprint({"w": w.clone()})
