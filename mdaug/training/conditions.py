"""Continuous conditions: numeric columns of the metadata, normalised over the training split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.dataset import ShardDataset
from shards.errors import UserError

MOST_ROWS = 200  # joint values of a class that a pipeline keeps, spread evenly over its training images


@dataclass(frozen=True)
class Conditions:
    """The conditions of every image, beside its class.

    Attributes:
        names: the k columns.
        mean: of each over the training images that have it.
        std: its standard deviation there.
        train: float32 (n, k), normalised values of the training images, NaN where an image has none.
        val: the same of the validation images.
        values: class name -> joint values of its training images in their own units, None where there is none.
    """

    names: list[str]
    mean: list[float]
    std: list[float]
    train: np.ndarray
    val: np.ndarray
    values: dict[str, list[list[float | None]]]

    def of_auxiliary(self, images: Path | None, split: str, count: int) -> np.ndarray:
        """Return the conditions of auxiliary images in their own units, float64 (n, k), NaN where one has none.

        Args:
            images: their packed folder; None where only their latents are there.
            split: "train" or "val".
            count: number n of images.
        """
        if images is None:
            return np.full((count, len(self.names)), math.nan)
        return _table(ShardDataset(images / split, fields=("meta",)), self.names, None)

    def normalised(self, raw: np.ndarray) -> np.ndarray:
        """Return float32 (n, k) in the scale of the training images."""
        return ((raw - self.mean) / self.std).astype(np.float32)

    def for_pipeline(self) -> dict[str, Any]:
        """Return what a `MicroDopplerPipeline` keeps, as plain JSON values."""
        return {"names": self.names, "mean": self.mean, "std": self.std, "values": self.values}


def read(packed: Path, names: list[str]) -> Conditions:
    """Return the columns `names` of the metadata of a packed set.

    Raises:
        UserError: a column that does not exist, holds anything but numbers, or is the same for all training images;
            named together with the columns that exist.
    """
    train = ShardDataset(packed / "train", fields=("meta",))
    raw = _table(train, names, packed)
    for name, column in zip(names, raw.T, strict=True):
        if not np.nanstd(column) > 0:
            raise UserError(
                f"condition_on names '{name}', which is {np.nanmax(column):g} for all training images of {packed}; "
                "a condition has to vary"
            )
    mean, std = np.nanmean(raw, axis=0), np.nanstd(raw, axis=0)
    val = _table(ShardDataset(packed / "val", fields=("meta",)), names, None)
    return Conditions(
        names=names,
        mean=mean.tolist(),
        std=std.tolist(),
        train=((raw - mean) / std).astype(np.float32),
        val=((val - mean) / std).astype(np.float32),
        values={name: joint(raw[train.labels == label]) for label, name in enumerate(train.classes)},
    )


def _table(dataset: ShardDataset, names: list[str], packed: Path | None) -> np.ndarray:
    """Return float64 (n, k), NaN where a sample has no value; with `packed`, every column must be found there."""
    table = np.full((len(dataset), len(names)), math.nan)
    numeric: dict[str, bool] = {}
    for i in range(len(dataset)):
        sample = dataset[i]
        for name, value in sample["meta"].items():
            if value not in ("", None):
                numeric[name] = numeric.get(name, True) and _number(value) is not None
        for column, name in enumerate(names):
            value = sample["meta"].get(name)
            if value not in ("", None):
                number = _number(value)
                if number is None:
                    raise UserError(
                        f"condition_on names '{name}', which holds {value!r} at sample '{sample['key']}' of "
                        f"{dataset.folder}; a condition is a number"
                    )
                table[i, column] = number
    for name in names:
        if packed is not None and name not in numeric:
            numeric_columns = ", ".join(sorted(column for column, is_numeric in numeric.items() if is_numeric))
            raise UserError(
                f"condition_on names '{name}', a column that the metadata of {packed} does not have; "
                f"its numeric columns are {numeric_columns or 'none'}"
            )
    return table


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def joint(rows: np.ndarray) -> list[list[float | None]]:
    """Return at most MOST_ROWS rows, spread evenly over those with any value; one row of None if none have."""
    rows = rows[~np.isnan(rows).all(axis=1)]
    if not len(rows):
        return [[None] * rows.shape[1]]
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).astype(int))]
    return [[None if math.isnan(value) else float(f"{value:.6g}") for value in row] for row in chosen.tolist()]
