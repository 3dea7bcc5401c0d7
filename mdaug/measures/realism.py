"""How much one set of spectrograms looks like another: their texture in figures, and how easily they are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdaug.measures import classifier, image_set, kinematics
from mdaug.measures.features import extract, random_network
from mdaug.measures.fidelity import frechet_distance
from mdaug.measures.levels import palette, stack

SIZE = 64  # rows and columns at which textures are compared
FLOOR = 12  # levels up to this count as floor
FINE = 0.25  # of the Nyquist frequency; power above it is fine structure
MOST_PER_CLASS = 200
WINDOWS = 200  # of each set that a classifier sees at most: half to learn from, half to judge
STEPS, BATCH, RATE = 300, 32, 2e-3  # of that classifier

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


def read(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Return levels, uint8 (n, 64, 64), and groups of packed images (a folder of shards, such as packed/val)."""
    images = image_set.load(folder, image_size=SIZE, max_per_class=MOST_PER_CLASS)
    return stack(images, palette(images), (SIZE, SIZE)), images.groups


def compare(
    first: np.ndarray, second: np.ndarray, first_groups: list[str], second_groups: list[str], steps: int = STEPS
) -> dict:
    """Return how two sets of spectrograms differ in texture, and how well a small classifier tells them apart.

    Args:
        first: levels of a set, uint8 (n, 64, 64).
        second: the same of the other set, uint8 (m, 64, 64).
        first_groups: n names of recordings; what overlaps must not be learnt from and judged.
        second_groups: m names.
        steps: of the classifier.

    Returns:
        {"statistics": [of the first set, of the second], see `statistics`; "frechet": distance in the features of the
        random network; "accuracy": of a small ResNet trained to tell the sets apart, on recordings that it has not
        seen, 0.5 where it cannot; "windows": how many of each set it saw and judged; the last two are None where a
        set has fewer than two recordings}.
    """
    features = [extract(random_network(1), levels[..., None]) for levels in (first, second)]
    figures = {
        "statistics": [statistics(first), statistics(second)],
        "frechet": frechet_distance(*features),
        "accuracy": None,
        "windows": None,
    }
    halves = [_halves(groups) for groups in (first_groups, second_groups)]
    count = min(len(half) for of_set in halves for half in of_set)
    if count == 0:
        return figures
    # As many of both sets, in both halves.
    chosen = [[half[:count] for half in of_set] for of_set in halves]
    learn, judge = (np.concatenate([first[chosen[0][k]], second[chosen[1][k]]])[..., None] for k in range(2))
    labels = np.repeat([0, 1], count)
    with classifier.one_thread():
        judge_of = classifier.train(learn, labels, 2, steps=steps, batch_size=BATCH, learning_rate=RATE, seed=0)
        right = classifier.predict(judge_of, judge).argmax(axis=1) == labels
    return figures | {"accuracy": float(right.mean()), "windows": 2 * count}


def _halves(groups: list[str]) -> list[np.ndarray]:
    """Return the places of at most 100 windows of one half of the recordings, and of the other half."""
    rng = np.random.default_rng(0)
    names = rng.permutation(np.unique(groups))
    halves = (np.flatnonzero(np.isin(groups, part)) for part in (names[::2], names[1::2]))
    return [rng.permutation(half)[: WINDOWS // 2] for half in halves]


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
