"""Noise: numbers as a pure function of (seed, generation, member, name)."""

from evostep.noise.draws import (
    NOISE_KINDS,
    LowRank,
    Noise,
    NoiseKind,
    check_noise,
    draw,
    draw_many,
    noise_dtype,
    weighted_sum,
)
from evostep.noise.seeds import derive_seed, make_generator

__all__ = [
    "NOISE_KINDS",
    "LowRank",
    "Noise",
    "NoiseKind",
    "check_noise",
    "derive_seed",
    "draw",
    "draw_many",
    "make_generator",
    "noise_dtype",
    "weighted_sum",
]
