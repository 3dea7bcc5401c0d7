"""Kinematics read from spectrograms: torso velocity, envelopes, cadence, symmetry, and how two sets differ in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mdaug.measures import envelope
from mdaug.measures.envelope import CLIP_DB
from mdaug.radar.gait import Walker

EXTREME = 0.95  # of an envelope over time: its upper reach, without the one column that stands out
PEAK = 0.25  # least autocorrelation of a cadence
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FEWEST = 5  # values below which there is no distribution to compare


@dataclass(frozen=True)
class Axes:
    """Physical meaning of rows, columns and levels of the spectrograms.

    Attributes:
        speed: velocity at the upper edge, in m/s or 1; the lower edge is -speed.
        duration: time from the first column to the last, in s or 1 (picture).
        clip_db: levels 0 to 255 span this many dB.
        physical: whether speed and duration are in m/s and s.
    """

    speed: float = 1.0
    duration: float = 1.0
    clip_db: float = CLIP_DB
    physical: bool = False

    @classmethod
    def of(cls, meta: Sequence[dict]) -> Axes:
        """Return the axes named by v_max_m_s, duration_s, window_s and clip_db, as far as all samples agree on them."""

        def common(name: str) -> float | None:
            values = {str(row.get(name, "")) for row in meta}
            return float(values.pop()) if len(values) == 1 and "" not in values else None

        speed, duration, clip_db = (common(name) for name in ("v_max_m_s", "duration_s", "clip_db"))
        if speed is None or duration is None:
            return cls(clip_db=clip_db or CLIP_DB)
        # The first column is a window that starts with the picture, the last one a window that ends with it.
        return cls(speed, duration - (common("window_s") or 0.0), clip_db or CLIP_DB, physical=True)

    @property
    def units(self) -> dict[str, str]:
        """Name the unit of each measure."""
        speed, rate = ("m/s", "1/s") if self.physical else ("of the axis", "per picture")
        return {"torso": speed, "upper": speed, "lower": speed, "bandwidth": speed, "cadence": rate, "symmetry": ""}


def measure(levels: np.ndarray, axes: Axes) -> dict[str, np.ndarray]:
    """Return measure -> values float64 (n,) of spectrograms; NaN where a picture does not show the measure.

    torso: median over time of the velocity of the strongest row of a column. upper, lower: how far the 97 % and 3 %
    envelopes of cumulative power reach (their 95th and 5th percentile over time). bandwidth: mean over time of the
    distance between the two. cadence: rate of the first peak of the autocorrelation of the envelope on the torso's
    side. symmetry: (power above zero Doppler - power below) / sum, in [-1, 1].

    Args:
        levels: uint8 (n, H, W); row 0 is the highest velocity, levels are linear in dB.
        axes: what rows, columns and levels mean.
    """
    rows = [_measure_one(picture, axes) for picture in levels]
    return {name: np.array([row[i] for row in rows], dtype=np.float64) for i, name in enumerate(axes.units)}


def envelopes(levels: np.ndarray, axes: Axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return velocities of ridge, upper and lower envelope of one picture, (W,) each; NaN in columns without signal."""
    ridge, upper, lower = (axes.speed * (1 - 2 * place) for place in envelope.envelopes(_power(levels, axes)))
    return ridge, upper, lower


def period(course: np.ndarray) -> float:
    """Return the period of a course (N,) in samples, between them by a parabola; NaN where there is none.

    The first peak of the autocorrelation after it has fallen below zero, if it is at least 0.25 of lag 0; lags up to
    two thirds of the course count, each mean taken over the overlap.
    """
    n = len(course)
    correlation = autocorrelation(course)
    below = np.flatnonzero(correlation < 0)
    start = below[0] if len(below) else n
    for lag in range(start + 1, 2 * n // 3):
        before, here, after = correlation[lag - 1 : lag + 2]
        if here >= PEAK and before < here >= after:
            return float(lag + 0.5 * (before - after) / (before - 2 * here + after))
    return float("nan")


def autocorrelation(course: np.ndarray, biased: bool = False) -> np.ndarray:
    """Return the autocorrelation (N,) of a course (N,) without its mean, 1 at lag 0; zeros for a constant course.

    Each mean is taken over the overlap, or biased: over N, so that long lags count less.
    """
    course = course - course.mean()
    n = len(course)
    spectrum = np.fft.rfft(course, 2 * n)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:n] / (n if biased else np.arange(n, 0, -1))
    return correlation / correlation[0] if correlation[0] > 0 else np.zeros(n)


def compare(
    real: dict[str, np.ndarray],
    real_labels: np.ndarray,
    other: dict[str, np.ndarray],
    other_labels: np.ndarray,
    num_classes: int,
) -> list[dict]:
    """Return, per class and measure, how the distributions of two sets differ.

    Returns:
        a list over classes of {measure: {"wasserstein", "ks", "p", "medians": [real, other]}}; Wasserstein distance
        in the unit of the measure, Kolmogorov-Smirnov statistic and its p value; None below five values.
    """
    table = []
    for label in range(num_classes):
        row: dict[str, dict | None] = {}
        for name in real:
            a, b = (values[name][labels == label] for values, labels in ((real, real_labels), (other, other_labels)))
            a, b = a[~np.isnan(a)], b[~np.isnan(b)]
            if min(len(a), len(b)) < FEWEST:
                row[name] = None
                continue
            test = stats.ks_2samp(a, b)
            row[name] = {
                "wasserstein": float(stats.wasserstein_distance(a, b)),
                "ks": float(test.statistic),
                "p": float(test.pvalue),
                "medians": [float(np.median(a)), float(np.median(b))],
            }
        table.append(row)
    return table


def quantiles(values: dict[str, np.ndarray], labels: np.ndarray, num_classes: int) -> dict[str, list]:
    """Return, per measure and class, the 5, 25, 50, 75 and 95 % quantiles; None below five values."""
    table: dict[str, list] = {}
    for name, column in values.items():
        known = [column[(labels == label) & ~np.isnan(column)] for label in range(num_classes)]
        table[name] = [np.quantile(part, QUANTILES).tolist() if len(part) >= FEWEST else None for part in known]
    return table


def truth(meta: dict) -> dict[str, float]:
    """Return the true measures of a picture of `mdaug simulate`, from its parameters; empty where they have no say.

    A walker's torso moves at the walking speed times the cosine of the aspect, and the legs pass twice a cycle; a
    drone's body moves at its velocity; a bird's wings beat at the flapping rate.
    """
    if "cycle_scale" in meta:
        walker = Walker.of({name: _number(value) for name, value in meta.items()})
        # Of a window of a walk, how much of an even pace it shows.
        start_s, lasts_s = float(meta.get("start_s") or 0), float(meta["duration_s"])
        pace = float(np.diff(walker.paced(np.array([start_s, start_s + lasts_s])))[0]) / lasts_s
        torso = pace * walker.speed_m_s * float(np.cos(np.radians(float(meta["aspect_deg"]))))
        return {"torso": torso, "cadence": pace * float(2 / walker.cycle_s)}
    if "rotation_hz" in meta:
        return {"torso": float(meta["velocity_m_s"])}
    if "flap_hz" in meta:
        return {"cadence": float(meta["flap_hz"])}
    return {}


def estimator_error(values: dict[str, np.ndarray], meta: Sequence[dict], labels: np.ndarray) -> list[dict]:
    """Return how far the measures lie from the true parameters of simulated pictures, per class and measure.

    Returns:
        rows {"class", "measure", "count", "found": share of pictures that show the measure, "bias": median error,
        "error": median absolute error, "truth": median true magnitude}.
    """
    known = [truth(row) for row in meta]
    rows = []
    for label in np.unique(labels):
        for name in values:
            places = [i for i in np.flatnonzero(labels == label) if name in known[i]]
            if not places:
                continue
            true = np.array([known[i][name] for i in places])
            difference = values[name][places] - true
            found = difference[~np.isnan(difference)]
            rows.append(
                {
                    "class": int(label),
                    "measure": name,
                    "count": len(places),
                    "found": len(found) / len(places),
                    "bias": float(np.median(found)) if len(found) else None,
                    "error": float(np.median(np.abs(found))) if len(found) else None,
                    "truth": float(np.median(np.abs(true))),
                }
            )
    return rows


def _measure_one(levels: np.ndarray, axes: Axes) -> tuple[float, ...]:
    power = _power(levels, axes)
    total = power.sum()
    if total == 0:
        return (float("nan"),) * 6
    ridge, upper, lower = envelopes(levels, axes)
    torso = float(np.nanmedian(ridge))
    side = _filled(upper if torso >= 0 else lower)
    lag = period(side)
    above = power[: len(power) // 2].sum()
    return (
        torso,
        float(np.nanquantile(upper, EXTREME)),
        float(np.nanquantile(lower, 1 - EXTREME)),
        float(np.nanmean(upper - lower)),
        len(side) / (lag * axes.duration),
        float((2 * above - total) / total),
    )


def _power(levels: np.ndarray, axes: Axes) -> np.ndarray:
    return envelope.signal_power(levels, axes.clip_db)


def _filled(course: np.ndarray) -> np.ndarray:
    """Return a course (W,) with the columns without signal filled by a line between their neighbours."""
    known = np.flatnonzero(~np.isnan(course))
    return np.interp(np.arange(len(course)), known, course[known])


def _number(value: object) -> object:
    try:
        return float(str(value))
    except ValueError:
        return value
