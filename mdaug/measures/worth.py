"""What an arm is worth in real images: how many of them the free baseline needs to reach the same figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FLAT = 0.02  # a learning curve that rises by less says nothing about how much an image is worth


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


def with_interval(
    baseline: float, gain: tuple[float, float, float], curve: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return `worth` of an arm with "gain", and "low" and "high": `worth` at the ends of the interval of its gain.

    Args:
        baseline: mean recall of the free baseline on equally many images.
        gain: (difference from it, low, high).
        curve: as in `worth`.
    """
    value, low, high = (worth(baseline + points, curve) for points in gain)
    return {**value, "low": low, "high": high, "gain": list(gain)}


def in_words(worth: dict[str, Any]) -> str:
    """Return what `worth` found as text, such as "12", "more than 50" or "flat curve"."""
    if worth["flat"]:
        return "flat curve"
    return f"{worth['beyond']} than {worth['number']:.0f}" if worth["beyond"] else f"{worth['number']:.0f}"


def described(worth: dict[str, Any]) -> str:
    """Return what `with_interval` found as text: "12 (8 to more than 50)", or of a flat curve the gain in points.

    An interval that lies beyond the curve, as the value does, is left out: "less than 10".
    """
    if worth["flat"]:
        points, low, high = (100 * value for value in worth["gain"])
        return f"flat curve, {points:+.1f} points ({low:+.1f} to {high:+.1f})"
    value, low, high = in_words(worth), in_words(worth["low"]), in_words(worth["high"])
    return value if value == low == high else f"{value} ({low} to {high})"
