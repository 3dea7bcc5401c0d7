"""Mean recalls of trials, differences with intervals, and what an arm is worth in real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mdaug.evaluation.usefulness import paired_interval
from mdaug.measures.image_set import class_weights

FLAT = 0.02  # a learning curve that rises by less says nothing about how much an image is worth


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

    The interval is that of `usefulness.paired_interval`.

    Args:
        first: hits, bool (seeds, n).
        labels: int64 (n,).
        groups: n names.
        second: hits of the other arm, by the same seeds on the same images.
    """
    difference, low, high = paired_interval(first, np.zeros_like(first) if second is None else second, labels, groups)
    return difference, max(low, 0.0) if second is None else low, high


def worth(value: float, curve: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return how many real images (or groups) the free baseline needs to reach a figure.

    Interpolated in the logarithm of the number, on the curve made monotonous.

    Args:
        value: mean recall of the arm.
        curve: (number, mean recall) of the free baseline, by ascending number.

    Returns:
        {"flat": the curve rises by less than 2 points, so that its numbers mean nothing, "number": None where flat,
        "beyond": "" or "less" / "more" than that number}.
    """
    numbers, recalls = np.array(curve, dtype=float).T
    if len(numbers) < 2 or recalls[-1] - recalls[0] < FLAT:
        return {"flat": True, "number": None, "beyond": ""}
    rising = np.maximum.accumulate(recalls)
    if value < rising[0]:
        return {"flat": False, "number": float(numbers[0]), "beyond": "less"}
    if value > rising[-1]:
        return {"flat": False, "number": float(numbers[-1]), "beyond": "more"}
    right = max(1, int(np.searchsorted(rising, value)))
    step = rising[right] - rising[right - 1]
    part = (value - rising[right - 1]) / step if step else 0.0
    logs = np.log(numbers)
    number = float(np.exp(logs[right - 1] + part * (logs[right] - logs[right - 1])))
    return {"flat": False, "number": number, "beyond": ""}


def in_words(worth: dict[str, Any]) -> str:
    """Return what `worth` found as text, such as "12", "more than 50" or "flat curve"."""
    if worth["flat"]:
        return "flat curve"
    return f"{worth['beyond']} than {worth['number']:.0f}" if worth["beyond"] else f"{worth['number']:.0f}"
