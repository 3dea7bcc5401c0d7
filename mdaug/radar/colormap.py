"""Colour at the edge only: 8-bit levels to the RGB pictures that radar groups keep."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def jet(entries: int = 256) -> np.ndarray:
    """Return MATLAB's jet as uint8 (entries, 3): dark blue, blue, cyan, yellow, red, dark red.

    With x = i / entries, i = 1 .. entries, each channel is the trapezoid 1.5 - 4 |x - c| cut to [0, 1], centred at
    c = 3/4 (red), 1/2 (green) and 1/4 (blue). The first entry, the floor of a spectrogram, is (0, 0, 131) for
    256 entries and (0, 0, 143) for 64; matplotlib's jet of the same name starts at (0, 0, 127) instead.
    """
    position = np.arange(1, entries + 1)[:, None] / entries
    ramp = 1.5 - 4 * np.abs(position - np.array([0.75, 0.5, 0.25]))
    return np.round(255 * np.clip(ramp, 0, 1)).astype(np.uint8)
