"""How much one set of spectrograms looks like another: their texture in figures, and how easily they are told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdaug.measures import envelope, kinematics

SIZE = 64  # rows and columns at which textures are compared
FLOOR = 12  # levels up to this count as floor
FINE = 0.25  # of the Nyquist frequency; power above it is fine structure

STATISTICS = {
    "floor_share": "share of pixels at the floor",
    "level_mean": "level above the floor: mean",
    "level_p90": "level above the floor: 90th percentile",
    "rows_mean": "rows above the floor in a column: mean",
    "rows_spread": "rows above the floor in a column: spread over a picture",
    "step_doppler": "difference of neighbouring levels, along Doppler",
    "step_time": "difference of neighbouring levels, along time",
    "filled_share": "filled share between the outermost rows of a column",
    "ridge_spread": "strongest row: spread over time, in rows",
    "period": "period of the envelope, in columns",
    "rhythm": "height of its autocorrelation",
    "fine_doppler": "power above a quarter of Nyquist, Doppler",
    "fine_time": "power above a quarter of Nyquist, time",
}
"""What `statistics` returns, and what it means."""


def statistics(levels: np.ndarray) -> dict[str, float]:
    """Return the texture of spectrograms, by the names of STATISTICS; NaN where there is nothing above the floor.

    Levels above 12 count as above the floor. Differences are half of those between the two neighbours of a pixel,
    mean of their sizes over pixels above the floor. The envelope is the number of rows above the floor of a column;
    its period and the height there are those of the first peak of the autocorrelation after it has crossed zero
    (biased estimate), medians over pictures. Fine power is the share of the two-dimensional spectrum of a picture
    without its mean, sums over all pictures.

    Args:
        levels: uint8 (n, 64, 64); row 0 is the highest velocity, levels are linear in dB.
    """
    above = levels > FLOOR
    if not above.any():
        return dict.fromkeys(STATISTICS, float("nan"))
    values = levels.astype(np.float32)
    rows = above.sum(axis=1)
    # From the first row above the floor to the last.
    extent = levels.shape[1] - above.argmax(axis=1) - above[:, ::-1].argmax(axis=1)
    steps = [float(np.abs(np.gradient(values, axis=axis))[above].mean()) for axis in (1, 2)]
    rhythms = np.array([_rhythm(course) for course in rows.astype(float)])
    found = rhythms[~np.isnan(rhythms[:, 0])]
    period, rhythm = np.median(found, axis=0) if len(found) else (np.nan, np.nan)
    fine = _fine_power(values)
    return {
        "floor_share": float(1 - above.mean()),
        "level_mean": float(values[above].mean()),
        "level_p90": float(np.quantile(values[above], 0.9)),
        "rows_mean": float(rows.mean()),
        "rows_spread": float(rows.std(axis=1).mean()),
        "step_doppler": steps[0],
        "step_time": steps[1],
        "filled_share": float((rows / extent)[rows > 0].mean()),
        "ridge_spread": float(levels.argmax(axis=1).std(axis=1).mean()),
        "period": float(period),
        "rhythm": float(rhythm),
        "fine_doppler": fine[0],
        "fine_time": fine[1],
    }


def _rhythm(course: np.ndarray) -> tuple[float, float]:
    """Return lag and height of the first peak of the autocorrelation of a course (N,) beyond its first zero."""
    correlation = kinematics.autocorrelation(course, biased=True)
    below = np.flatnonzero(correlation < 0)
    for lag in range(below[0] + 1 if len(below) else len(course), 2 * len(course) // 3):
        if correlation[lag - 1] < correlation[lag] >= correlation[lag + 1]:
            return float(lag), float(correlation[lag])
    return float("nan"), float("nan")


def _fine_power(values: np.ndarray) -> tuple[float, float]:
    """Return the shares of power above a quarter of Nyquist along rows and along columns, of pictures (n, H, W)."""
    power = np.abs(np.fft.fft2(values - values.mean(axis=(1, 2), keepdims=True))) ** 2
    total = power.sum(axis=0)
    along_doppler, along_time = (np.abs(np.fft.fftfreq(size)) > FINE / 2 for size in total.shape)
    whole = max(float(total.sum()), 1e-30)
    return float(total[along_doppler].sum()) / whole, float(total[:, along_time].sum()) / whole
