"""Pictures in jet, which may be off the map: levels and how far the colours lie from it."""

from __future__ import annotations

import functools

import numpy as np

from shards.colormap import jet


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
