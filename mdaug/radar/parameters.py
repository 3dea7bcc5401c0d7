"""Random parameters, each a pure function of (seed, class, purpose, number), and where the radar stands."""

from __future__ import annotations

from zlib import crc32

import numpy as np

Parameters = dict[str, float | int | str]
GROUP, IMAGE, NOISE, LIKE = range(4)
"""Purposes of random numbers; part of what a seed means, never reuse or renumber them."""


class Draw:
    """Random numbers for parameters, rounded to six significant digits so that text holds them exactly."""

    def __init__(self, *key: int):
        self.rng = np.random.default_rng(key)

    @classmethod
    def of(cls, name: str, seed: int, purpose: int, number: int) -> Draw:
        """Return the numbers of one purpose (GROUP, IMAGE, NOISE, LIKE) of a class, whatever others there are."""
        return cls(seed, crc32(name.encode()), purpose, number)

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high]."""
        return float(f"{self.rng.uniform(low, high):.6g}")

    def normal(self, mean: float, std: float) -> float:
        """Return a normal number, cut at two standard deviations."""
        return float(f"{mean + std * np.clip(self.rng.standard_normal(), -2, 2):.6g}")

    def choice(self, *values: float) -> float:
        """Return one of the values."""
        return values[self.rng.integers(len(values))]


def radar_position(distance_m: float, aspect_deg: float, height_m: float) -> np.ndarray:
    """Return where the radar stands (3,) for a target at the origin that faces +x; at aspect 0 it faces the radar."""
    aspect = np.radians(aspect_deg)
    return np.array([distance_m * np.cos(aspect), distance_m * np.sin(aspect), height_m])
