"""Mean recalls of trials, and differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from mdaug.evaluation.comparisons import paired_interval
from mdaug.measures.image_set import class_weights


def mean_recall(hits: np.ndarray, labels: np.ndarray) -> float:
    """Return the recall of each class that has images, averaged; hits bool (..., n)."""
    return float(np.mean(hits @ class_weights(labels)))


def hits_of(results: Sequence[dict[str, Any]], labels: np.ndarray, key: str) -> np.ndarray:
    """Return whether each image was seen right, bool (seeds, n), from the results of all folds and seeds of an arm.

    Args:
        results: of `trials.run_trial`; every image is judged once for each (subset, seed).
        labels: int64 (n,), the classes of the images that are judged.
        key: "plain" or "averaged".
    """
    runs = sorted({(result["trial"]["subset"], result["trial"]["seed"]) for result in results})
    hits = np.zeros((len(runs), len(labels)), dtype=bool)
    for result in results:
        row = runs.index((result["trial"]["subset"], result["trial"]["seed"]))
        hits[row, result["judged"]] = np.asarray(result[key]) == labels[result["judged"]]
    return hits


def interval(
    first: np.ndarray, labels: np.ndarray, groups: Sequence[str], second: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return mean recall of an arm, or its difference from a second one, and the 95 % interval.

    The interval is that of `comparisons.paired_interval`.

    Args:
        first: hits, bool (seeds, n).
        labels: int64 (n,).
        groups: n names.
        second: hits of the other arm, by the same seeds on the same images.
    """
    difference, low, high = paired_interval(first, np.zeros_like(first) if second is None else second, labels, groups)
    return difference, max(low, 0.0) if second is None else low, high


def gains(first: np.ndarray, labels: np.ndarray, second: np.ndarray) -> list[float]:
    """Return the gain of each seed: the difference of the mean recalls of two arms, from their hits bool (seeds, n)."""
    return ((first.astype(np.float64) - second) @ class_weights(labels)).tolist()


def provable(gains: Sequence[float], seeds: int) -> bool:
    """Return whether the interval of a mean gain can still lie above zero, whatever the seeds to come bring.

    With n seeds it can only if the mean is more than Student's t (97.5 %, n - 1 degrees of freedom) standard errors
    above zero, for `interval` is wider than that. Of the seeds to come equal gains bring the mean most standard errors
    above zero. The largest number of them, over that gain, is sqrt(n (n - 1) (m^2 / S + (n - j) / (n j))), where m is
    the mean of the j gains known, or 0 if that is negative, and S the sum of their squared deviations.

    Args:
        gains: of the seeds known, at least one.
        seeds: n, of these and those to come.
    """
    if seeds == 1:
        return gains[0] > 0
    known, mean = len(gains), max(float(np.mean(gains)), 0.0)
    squares = float(np.sum((np.asarray(gains) - np.mean(gains)) ** 2))
    if squares == 0 and mean > 0:
        return True
    ratio = mean**2 / squares if mean else 0.0
    most = np.sqrt(seeds * (seeds - 1) * (ratio + (seeds - known) / (seeds * known)))
    return bool(most > stats.t.ppf(0.975, seeds - 1))
