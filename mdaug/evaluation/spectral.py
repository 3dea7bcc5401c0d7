"""Checks of the levels themselves: how much is floor, how far the signal stands out, where the power lies."""

from __future__ import annotations

import numpy as np
from scipy import stats

FLOOR = 13  # levels up to this, 5 % of the range, count as floor
BINS = 32


def levels_of(levels: np.ndarray) -> dict:
    """Return figures of spectrograms, uint8 (n, H, W).

    Returns:
        "floor_share": mean share of pixels within 5 % of the bottom of the range; "dynamic_range": mean over images
        of the 99th percentile minus the median, as a share of the range; "histogram": share of pixels in 32 bins of
        level; "doppler": mean level of 32 bands of rows (fewer where there are fewer rows), highest velocity first;
        "time": of bands of columns.
    """
    flat = levels.reshape(len(levels), -1)
    top, middle = np.quantile(flat, 0.99, axis=1), np.median(flat, axis=1)
    mean = levels.mean(axis=0, dtype=np.float64) / 255
    return {
        "floor_share": float((flat <= FLOOR).mean()),
        "dynamic_range": float((top - middle).mean() / 255),
        "histogram": (np.histogram(flat, BINS, (0, 256))[0] / flat.size).tolist(),
        "doppler": _profile(mean.mean(axis=1)),
        "time": _profile(mean.mean(axis=0)),
    }


def _profile(course: np.ndarray) -> list[float]:
    return [float(part.mean()) for part in np.array_split(course, min(BINS, len(course)))]


def histogram_distance(first: dict, second: dict) -> float:
    """Return the Wasserstein distance between the level histograms of two results, as a share of the range."""
    centres = (np.arange(BINS) + 0.5) / BINS
    return float(stats.wasserstein_distance(centres, centres, first["histogram"], second["histogram"]))
