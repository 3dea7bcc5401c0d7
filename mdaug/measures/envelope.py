"""Ridge and Doppler envelopes of the power in a spectrogram, for kinematics and sifting.

Power is counted above the noise floor; the envelopes are the places beyond which 3 % of a column's power lie
(percentile technique, van Dorp and Groen, IEE Proc. Radar, Sonar and Navigation 150 (2003)). How far a VQ-VAE moves the
envelopes of an image is measured in `image_quality.envelope_error`, which needs no dB scale.
"""

from __future__ import annotations

import numpy as np

TAIL = 0.03  # of the power of a column that lies beyond each envelope
ABOVE_FLOOR_DB = 6.0
CLIP_DB = 40.0  # assumed where the metadata do not say what range the levels span


def signal_power(levels: np.ndarray, clip_db: float = CLIP_DB) -> np.ndarray:
    """Return the power of a picture, levels uint8 (H, W), with what does not rise above its noise floor set to 0.

    The floor is the median level of the quieter half of the rows; without this cut, the noise of all rows together
    holds more than 3 % of a column's power and the envelopes run along the edges of the picture.

    Args:
        levels: linear in dB; 255 is the power 1.
        clip_db: what levels 0 to 255 span.
    """
    by_row = np.sort(np.median(levels, axis=1))
    floor = by_row[: max(1, len(by_row) // 2)].mean() + 255 * ABOVE_FLOOR_DB / clip_db
    return np.where(levels > floor, 10 ** ((levels / 255 - 1) * clip_db / 10), 0.0)


def envelopes(power: np.ndarray, tail: float = TAIL) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ridge, upper and lower envelope of powers (H, W), (W,) each, as shares of the height from the top.

    The ridge is the middle of the strongest row of a column; beyond the upper and beyond the lower envelope lies the
    part `tail` of its power, between rows by a line. NaN in columns without power.
    """
    height, total = len(power), power.sum(axis=0)
    share = np.cumsum(power, axis=0) / np.where(total > 0, total, np.nan)
    ridge = np.where(total > 0, power.argmax(axis=0) + 0.5, np.nan)
    return ridge / height, _crossing(share, tail) / height, _crossing(share, 1 - tail) / height


def _crossing(share: np.ndarray, level: float) -> np.ndarray:
    """Return where each column of cumulative shares (H, W) passes a level, in rows from the upper edge."""
    row = np.minimum((share < level).sum(axis=0), len(share) - 1)
    columns = np.arange(share.shape[1])
    before = np.where(row > 0, share[row - 1, columns], 0.0)
    return row + (level - before) / (share[row, columns] - before)
