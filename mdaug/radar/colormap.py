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


def invert_jet(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the levels behind coloured pictures and how far their colours lie from the map.

    Args:
        pictures: uint8 (..., 3).

    Returns:
        uint8 (...), the index of the nearest of the 256 entries, and float32 (...), the distance to it in RGB units,
        0 on the map. Both come from a table of every second value of each channel: exact on the map, and elsewhere
        within one unit of distance.
    """
    level, distance = _nearest_jet()
    index = (pictures >> 1).astype(np.int32)
    flat = (index[..., 0] << 14) | (index[..., 1] << 7) | index[..., 2]
    return level[flat], distance[flat]


@functools.lru_cache(maxsize=1)
def _nearest_jet() -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import cKDTree

    axis = np.arange(0, 256, 2, dtype=np.float32)
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    # A cell holds the values 2 i and 2 i + 1 of each channel; its entry, if it has one, is nearest to its middle.
    distance, level = cKDTree(jet().astype(np.float64)).query(colours + 0.5)
    return level.astype(np.uint8), np.maximum(distance - np.sqrt(0.75), 0).astype(np.float32)


def levels(image: np.ndarray) -> np.ndarray:
    """Return the grey levels uint8 (..., H, W) that an image uint8 (..., H, W, C) shows, in grey or in jet's colours.

    A picture with three equal channels is grey; any other is read as jet.
    """
    if image.shape[-1] == 1 or (image.min(axis=-1) == image.max(axis=-1)).all():
        return image[..., 0]
    return invert_jet(image)[0]
