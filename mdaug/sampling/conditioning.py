"""Continuous conditions of generated samples: fixed ones, and joint values of real training images for the rest."""

from __future__ import annotations

import math
from typing import Any

from shards.errors import UserError


def parse(text: str) -> dict[str, float]:
    """Return `speed=1.2,aspect=30` as a dict.

    Raises:
        ValueError: a part that is not name=number.
    """
    fixed: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            fixed[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"conditions holds '{part}'; write name=number, such as speed=1.2,aspect=30") from None
    return fixed


def describe(of_pipeline: dict[str, Any] | None, fixed: dict[str, float]) -> dict[str, Any] | None:
    """Return what a plan keeps: {"fixed", "values"}, or None for a pipeline without conditions.

    Args:
        of_pipeline: {"names", "mean", "std", "values"} of the pipeline, or None.
        fixed: name -> value for all samples.

    Raises:
        UserError: a condition that the model does not know.
    """
    names = of_pipeline["names"] if of_pipeline else []
    for name in fixed:
        if name not in names:
            raise UserError(
                f"conditions names '{name}', which the model was not trained on; its conditions are: "
                f"{', '.join(names) or 'none (train-ldm --condition_on makes a model with conditions)'}"
            )
    if of_pipeline is None:
        return None
    values = {
        label: [dict(zip(names, row, strict=True)) for row in rows] for label, rows in of_pipeline["values"].items()
    }
    return {"fixed": fixed, "values": values}


def warnings(conditions: dict[str, Any] | None, classes: list[str]) -> list[str]:
    """Return a sentence for each fixed value that lies outside what a class was trained on."""
    found = []
    for name, value in (conditions or {"fixed": {}})["fixed"].items():
        for label in classes:
            there = [row[name] for row in (conditions or {})["values"][label] if row[name] is not None]
            low, high = min(there, default=math.nan), max(there, default=math.nan)
            if not there:
                found.append(f"no training image of {label} has a value of {name}; {name}={value:g} is new to it")
            elif not low <= value <= high:
                found.append(f"{name}={value:g} lies outside the training images of {label} ({low:g} to {high:g})")
    return found
