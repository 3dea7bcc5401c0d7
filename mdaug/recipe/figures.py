"""Mean recalls of trials, and differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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
